//! See `taper_testkit::hostile::adapter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    taper_testkit::hostile::adapter(bytes);
});
