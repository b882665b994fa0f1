//! See `taper_testkit::hostile::tokenizer`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    // libFuzzer's own hook ends the process at every panic, also at one that `taper_text` makes an error of.
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| {
        taper_testkit::hostile::tokenizer(bytes);
    }
);
