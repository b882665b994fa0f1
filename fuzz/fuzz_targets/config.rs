//! See `taper_testkit::hostile::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    taper_testkit::hostile::config(bytes);
});
