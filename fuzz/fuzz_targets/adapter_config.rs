//! See `taper_testkit::hostile::adapter_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    taper_testkit::hostile::adapter_config(bytes);
});
