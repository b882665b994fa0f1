//! Good files, and every way to break one.

use super::*;
use proptest::prelude::*;

fn file(json: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"s":{"dtype":"U8","shape":[],"data_offsets":[12,13]},"none":{"dtype":"F64","shape":[0,7],"data_offsets":[13,13]}}   "#;

fn refused(json: &str, data: usize) -> SafetensorsError {
    Header::parse(&file(json, &vec![0; data])).unwrap_err()
}

fn tensor(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn a_good_header_gives_ranges_of_the_file() {
    let bytes = file(GOOD, &[0; 13]);
    let header = Header::parse(&bytes).unwrap();
    let start = 8 + GOOD.len();
    assert_eq!(header.metadata["format"], "pt");
    assert_eq!(header.tensors.len(), 4);
    let b = &header.tensors["b"];
    assert_eq!(
        (b.dtype, b.shape.as_slice(), b.range.clone()),
        (Dtype::BF16, &[2][..], start + 8..start + 12)
    );
    assert_eq!(header.tensors["s"].shape, [] as [usize; 0]);
    assert_eq!(Header::parse(&file("{}", b"")).unwrap(), Header::default());
}

/// As mlx writes it.
#[test]
fn metadata_may_be_null() {
    let json = r#"{"__metadata__":null,"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let header = Header::parse(&file(json, &[7])).unwrap();
    assert!(header.metadata.is_empty() && header.tensors.len() == 1);
}

#[test]
fn truncated_files_say_where_they_end() {
    let bytes = file(GOOD, &[0; 13]);
    for end in 0..bytes.len() {
        let error = Header::parse(&bytes[..end]).unwrap_err();
        let known = matches!(
            error,
            SafetensorsError::TooShort { .. }
                | SafetensorsError::HeaderCutOff { .. }
                | SafetensorsError::CutOff { .. }
        );
        assert!(known, "cut at {end}: {error}");
    }
    assert!(matches!(
        Header::parse(&[bytes, vec![0]].concat()),
        Err(SafetensorsError::Hole { bytes: 1, .. })
    ));
}

#[test]
fn lengths_that_would_take_all_memory_are_refused() {
    for length in [MAX_HEADER_BYTES + 1, u64::MAX, 1 << 63] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        assert_eq!(Header::parse(&bytes), Err(SafetensorsError::HeaderTooLong { length }));
    }
    let mut bytes = 99u64.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    assert_eq!(Header::parse(&bytes), Err(SafetensorsError::HeaderCutOff { end: 107, bytes: 10 }));
}

#[test]
fn shapes_and_offsets_that_do_not_fit_are_refused_without_overflow() {
    let wrong = [
        ("F32", "[2]", "[0,7]"),
        ("F32", "[2]", "[8,0]"),
        ("F32", "[18446744073709551615,2]", "[0,8]"),
        ("F32", "[4294967296,4294967296]", "[0,0]"),
        ("U8", "[18446744073709551615]", "[1,0]"),
        ("F64", "[1]", "[18446744073709551615,7]"),
    ];
    for (dtype, shape, offsets) in wrong {
        let error = refused(&tensor(dtype, shape, offsets), 8);
        assert!(matches!(error, SafetensorsError::WrongLength { .. }), "{shape} {offsets}: {error}");
    }
    let error = refused(&tensor("U8", "[8]", "[18446744073709551607,18446744073709551615]"), 8);
    assert!(matches!(error, SafetensorsError::CutOff { end: u64::MAX, .. }), "{error}");
    for json in
        [tensor("F32", "[-1]", "[0,4]"), tensor("F32", "[1.5]", "[0,4]"), tensor("F32", "[1]", "[0,4,8]")]
    {
        assert!(matches!(refused(&json, 4), SafetensorsError::Json(_)), "{json}");
    }
    let many = format!("[{}1]", "1,".repeat(16));
    assert!(matches!(
        refused(&tensor("U8", &many, "[0,1]"), 1),
        SafetensorsError::TooManyDimensions { dimensions: 17, .. }
    ));
}

#[test]
fn overlaps_and_holes_are_refused() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    let overlap = refused(&two("[0,4]", "[2,6]"), 6);
    assert_eq!(overlap.to_string(), "tensors `a` and `b` overlap");
    assert!(matches!(refused(&two("[0,4]", "[0,4]"), 4), SafetensorsError::Overlap { .. }));
    assert_eq!(
        refused(&two("[0,4]", "[5,9]"), 9).to_string(),
        "1 bytes before tensor `b` belong to no tensor"
    );
    assert!(matches!(refused(&two("[1,5]", "[5,9]"), 9), SafetensorsError::Hole { bytes: 1, .. }));
}

#[test]
fn names_given_twice_are_refused() {
    let w = r#""w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    assert!(refused(&format!("{{{w},{w}}}"), 1).to_string().contains("`w` is named twice"));
    let meta = r#""__metadata__":{}"#;
    assert!(refused(&format!("{{{meta},{meta}}}"), 0).to_string().contains("`__metadata__` is named twice"));
    assert!(refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0).to_string().contains("`k` is named twice"));
    assert!(matches!(refused(r#"{"__metadata__":{"k":1}}"#, 0), SafetensorsError::Json(_)));
}

#[test]
fn deep_json_is_refused_and_not_followed() {
    for depth in [200, 100_000] {
        let json = format!(r#"{{"w":{{"dtype":"U8","x":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(matches!(refused(&json, 0), SafetensorsError::Json(_)));
    }
}

#[test]
fn files_of_other_formats_are_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2269195160\n";
    assert_eq!(Header::parse(pointer), Err(SafetensorsError::LfsPointer { bytes: pointer.len() }));
    for (bytes, what) in [
        (&b"PK\x03\x04rest of it"[..], "PyTorch"),
        (b"GGUF\x03\x00\x00\x00\x00\x00", "GGUF"),
        (b"\x80\x02}q\x00(X\x01\x00\x00", "pickle"),
        (b"<!doctype html><html>", "web page"),
    ] {
        assert!(Header::parse(bytes).unwrap_err().to_string().contains(what));
    }
    // A header of 0x0280 bytes begins like a pickle.
    let json = format!("{{}}{}", " ".repeat(0x280 - 2));
    assert!(Header::parse(&file(&json, b"")).is_ok());
    assert_eq!(
        refused(&tensor("F4", "[1]", "[0,1]"), 1).to_string(),
        "tensor `w` has the unknown dtype `F4`"
    );
}

/// Ranges that a reader would slice the file with.
fn check_sound(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        let mut covered = 0;
        for info in header.tensors.values() {
            assert_eq!(
                bytes[info.range.clone()].len(),
                info.shape.iter().product::<usize>() * info.dtype.bytes()
            );
            covered += info.range.len();
        }
        assert!(covered + 10 <= bytes.len());
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        check_sound(&bytes);
    }

    #[test]
    fn random_text_behind_a_right_length_never_panics(json in "[\\[\\]{}\":,a-z0-9 _]{0,200}", data in 0usize..16) {
        check_sound(&file(&format!("{{{json}"), &vec![0; data]));
    }

    #[test]
    fn a_good_file_with_bytes_changed_never_panics(changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..6)) {
        let mut bytes = file(GOOD, &[0; 13]);
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        check_sound(&bytes);
    }

    #[test]
    fn what_the_reference_library_would_write_is_read_back(
        lengths in proptest::collection::vec(0u64..6, 0..8),
        dtype in 0usize..15,
    ) {
        let (name, dtype) = Dtype::NAMES[dtype];
        let mut at = 0;
        let entries: Vec<String> = lengths.iter().enumerate().map(|(i, n)| {
            let end = at + n * dtype.bytes() as u64;
            let entry = format!(r#""t{i}":{{"dtype":"{name}","shape":[{n}],"data_offsets":[{at},{end}]}}"#);
            at = end;
            entry
        }).collect();
        let bytes = file(&format!("{{{}}}", entries.join(",")), &vec![0; at as usize]);
        let header = Header::parse(&bytes).unwrap();
        prop_assert_eq!(header.tensors.len(), lengths.len());
        check_sound(&bytes);
    }
}
