//! What a file is that has another format than its name says, by its first bytes.

const KNOWN: [(&[u8], &str); 10] = [
    (b"GGUF", "a GGUF file"),
    (b"lmgg", "a GGML file from before GGUF"),
    (b"fmgg", "a GGML file from before GGUF"),
    (b"tjgg", "a GGML file from before GGUF"),
    (b"PK\x03\x04", "a zip or PyTorch archive"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"<!DOCTYPE", "a web page"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
];

/// Whether it is the note that git-lfs leaves in place of a file.
pub(crate) fn is_lfs_pointer(file: &[u8]) -> bool {
    file.starts_with(b"version https://git-lfs")
}

/// The format, where it is one that is often found under another's name.
pub(crate) fn other_format(file: &[u8]) -> Option<&'static str> {
    KNOWN.iter().find(|(magic, _)| file.starts_with(magic)).map(|(_, what)| *what)
}
