//! Good headers, and every way to break one.

use super::*;
use proptest::prelude::*;
use taper_diagnostics::Diagnose;
use taper_testkit::{GgufFile, golden, real_data_or_skip};

/// Every type of value, a nested array, and tensors of three types.
fn good() -> GgufFile {
    GgufFile::new()
        .text("general.architecture", "llama")
        .u32("n", 7)
        .value("i8", 1, &[0xfe])
        .value("u16", 2, &[1, 2])
        .value("i16", 3, &[0xff, 0xff])
        .value("u64", 10, &[1; 8])
        .value("i64", 11, &[0xff; 8])
        .value("f64", 12, &1.5f64.to_le_bytes())
        .f32("x", 1e-5)
        .flag("yes", true)
        .texts("words", &["a", "", "zwölf"])
        .i32s("kinds", &[1, -2, 3])
        .f32s("scores", &[0.5, -1.0])
        .flags("flags", &[true, false])
        .value("nested", 9, &nested(1))
        .zeros("a.weight", &[2, 3])
        .tensor("q.weight", 8, &[2, 64], &[1; 4 * 34])
        .tensor("one", 1, &[], &[0, 60])
}

/// An array of one array of one array ... of one byte.
fn nested(depth: usize) -> Vec<u8> {
    let link = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let last = [&0u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[42]].concat();
    [link.repeat(depth), last].concat()
}

fn refused(file: &GgufFile) -> String {
    Header::parse(&file.bytes()).unwrap_err().to_string()
}

#[test]
fn a_good_header_gives_values_and_ranges_of_the_file() {
    let bytes = good().bytes();
    let header = Header::parse(&bytes).unwrap();
    let metadata = &header.metadata;
    assert_eq!(metadata.text("general.architecture"), Ok(Some("llama")));
    assert_eq!(metadata.size("n"), Ok(Some(7)));
    assert_eq!(metadata.get("i8"), Some(&Value::Signed(-2)));
    assert_eq!(metadata.get("u16"), Some(&Value::Unsigned(513)));
    assert_eq!(metadata.get("i16"), Some(&Value::Signed(-1)));
    assert_eq!(metadata.get("i64"), Some(&Value::Signed(-1)));
    assert_eq!(metadata.number("x"), Ok(Some(1e-5)));
    assert_eq!(metadata.number("f64"), Ok(Some(1.5)));
    assert_eq!(metadata.flag("yes"), Ok(Some(true)));
    let words = metadata.texts("words").unwrap().unwrap();
    assert_eq!((words.len(), words.get(2), words.get(3)), (3, Some("zwölf"), None));
    assert_eq!(words.iter().collect::<Vec<_>>(), ["a", "", "zwölf"]);
    let kinds: Vec<Value> = metadata.numbers("kinds").unwrap().unwrap().iter().collect();
    assert_eq!(kinds, [1, -2, 3].map(Value::Signed));
    assert!(matches!(metadata.get("nested"), Some(Value::Array(Array::Arrays(inner))) if inner.len() == 1));

    let data = bytes.len() - 32 - 160 - 32;
    let q = &header.tensors["q.weight"];
    assert_eq!((q.ggml_type, q.shape.as_slice()), (GgmlType::Q8_0, &[2, 64][..]));
    assert_eq!(q.range, data + 32..data + 32 + 136);
    assert_eq!(header.tensors["one"].shape, [] as [usize; 0]);
    assert_eq!(Header::parse(&good().version(2).bytes()).unwrap().tensors, header.tensors);
}

#[test]
fn alignment_is_the_files_own() {
    let with = |alignment| GgufFile::new().alignment(alignment).zeros("a", &[1]).zeros("b", &[1]);
    let header = Header::parse(&with(64).bytes()).unwrap();
    assert_eq!(header.tensors["b"].range.start - header.tensors["a"].range.start, 64);
    for wrong in [0, 1, 4, 48, 1 << 17] {
        let file = GgufFile::new().u32("general.alignment", wrong);
        assert!(refused(&file).contains("wanted a power of two from 8 to 65536"), "{wrong}");
    }
    let text = refused(&GgufFile::new().text("general.alignment", "32"));
    assert!(text.contains("the text `32`, wanted a whole number"), "{text}");
}

#[test]
fn a_file_cut_anywhere_says_that_the_download_did_not_finish() {
    let bytes = good().bytes();
    // The last tensor has two bytes, and padding behind it.
    for end in 4..bytes.len() - 30 {
        let error = Header::parse(&bytes[..end]).unwrap_err();
        assert!(
            matches!(error, GgufError::HeaderCutOff { .. } | GgufError::CutOff { .. }),
            "cut at {end}: {error}"
        );
        assert!(error.hint().unwrap().contains("did not finish"));
    }
    assert!(Header::parse(&bytes[..bytes.len() - 30]).is_ok());
}

#[test]
fn other_formats_and_versions_are_named() {
    let said = |bytes: &[u8]| Header::parse(bytes).unwrap_err().to_string();
    assert!(said(b"version https://git-lfs.github.com/spec/v1\noid").contains("git-lfs pointer of 46 bytes"));
    assert_eq!(said(b""), "it is empty, not GGUF");
    assert_eq!(said(b"PK\x03\x04...."), "it is a zip or PyTorch archive, not GGUF");
    assert_eq!(said(b"\x10\0\0\0\0\0\0\0{\"a\":"), "it is a safetensors file, not GGUF");
    assert_eq!(said(b"<!DOCTYPE html><html>"), "it is a web page, not GGUF");
    assert_eq!(said(b"tjgg\x03\0\0\0"), "it is a GGML file from before GGUF, not GGUF");
    assert_eq!(said(b"what is this"), "it is something else, not GGUF");
    assert_eq!(said(b"GGUF\0\0\0\x03"), "it is a big-endian GGUF file, and only little-endian ones are read");
    assert_eq!(said(b"GGUF\x01\0\0\0"), "it is GGUF version 1, and read are 2 and 3");
    assert_eq!(refused(&good().version(4)), "it is GGUF version 4, and read are 2 and 3");
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused_before_memory_is_taken() {
    let huge = 1u64 << 60;
    let counts = |tensors: u64, keys: u64| {
        let parts = [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes()];
        Header::parse(&parts.concat()).unwrap_err().to_string()
    };
    assert!(counts(huge, 0).contains("the number of tensors is 1152921504606846976, over the limit"));
    assert!(counts(0, huge).contains("the number of metadata keys is"));
    assert!(counts(1000, 0).contains("cut off or broken: tensors would end at byte"));
    assert!(counts(0, 1000).contains("cut off or broken: metadata keys would end at byte"));
    for (type_id, what) in [(4u32, "metadata `k`"), (8, "values of `k`"), (9, "the number of values of `k`")]
    {
        let array = [&type_id.to_le_bytes()[..], &huge.to_le_bytes()].concat();
        let text = refused(&GgufFile::new().value("k", 9, &array));
        assert!(text.contains(what), "{text}");
    }
    let text = refused(&GgufFile::new().value("k", 8, &huge.to_le_bytes()));
    assert!(text.contains("the length of metadata `k` is"), "{text}");
    let text = refused(&GgufFile::new().value("k", 8, &100u64.to_le_bytes()));
    assert!(text.contains("metadata `k` would end at byte"), "{text}");
    let text = refused(&GgufFile::new().value(&"k".repeat(70_000), 0, &[1]));
    assert!(text.contains("the length of the key at byte 24 is 70000, over the limit of 65535"), "{text}");
    let text = refused(&GgufFile::new().zeros(&"t".repeat(300), &[1]));
    assert!(text.contains("is 300, over the limit of 256"), "{text}");
}

#[test]
fn odd_metadata_is_refused_by_key() {
    let with = |type_id, bytes: &[u8]| refused(&GgufFile::new().value("k", type_id, bytes));
    assert_eq!(with(13, &[0; 8]), "metadata `k` has a value of the unknown type 13");
    assert_eq!(
        with(9, &[&77u32.to_le_bytes()[..], &[0; 8]].concat()),
        "metadata `k` has a value of the unknown type 77"
    );
    assert_eq!(with(7, &[2]), "metadata `k` holds a truth value of 2, wanted 0 or 1");
    assert_eq!(with(9, &nested(9)), "the depth of arrays in `k` is 4, over the limit of 3");
    assert_eq!(with(8, &[&1u64.to_le_bytes()[..], &[0xff]].concat()), "metadata `k` is not UTF-8 text");
    assert_eq!(refused(&GgufFile::new().u32("k", 1).u32("k", 1)), "metadata `k` is given twice");
    assert!(Header::parse(&GgufFile::new().value("k", 9, &nested(3)).bytes()).is_ok());
    let split = GgufFile::new().value("split.count", 2, &[3, 0]);
    assert!(refused(&split).contains("one of 3 files"));
    assert!(Header::parse(&GgufFile::new().value("split.count", 2, &[1, 0]).bytes()).is_ok());
}

#[test]
fn odd_tensors_are_refused_by_name() {
    let with = |type_id, shape: &[usize]| refused(&GgufFile::new().tensor("t", type_id, shape, &[0; 64]));
    assert_eq!(with(16, &[256]), "tensor `t` is stored as IQ2_XXS, which is not supported");
    assert_eq!(with(39, &[32]), "tensor `t` is stored as MXFP4, which is not supported");
    assert_eq!(with(999, &[1]), "tensor `t` has the unknown type 999");
    assert_eq!(with(2, &[32, 3]), "tensor `t` has the shape [32, 3], which makes no tensor of Q4_0");
    assert_eq!(with(0, &[0, 4]), "tensor `t` has the shape [0, 4], which makes no tensor of F32");
    assert_eq!(with(0, &[1, 1, 1, 1, 1]), "the number of dimensions of tensor `t` is 5, over the limit of 4");
    assert!(with(0, &[1 << 40, 1 << 40]).contains("makes no tensor of F32"));
    assert!(with(0, &[1 << 40]).contains("it is cut off: tensor `t` ends at byte"));
    let twice = GgufFile::new().zeros("t", &[1]).zeros("t", &[1]);
    assert_eq!(refused(&twice), "tensor `t` is listed twice");
}

#[test]
fn offsets_are_aligned_and_apart() {
    let bytes = GgufFile::new().zeros("a", &[8]).zeros("b", &[8]).bytes();
    // The offset of `b` is what the header ends with.
    let at = 24 + 2 * (8 + 1 + 4 + 8 + 4 + 8) - 8;
    assert_eq!(bytes[at..at + 8], 32u64.to_le_bytes());
    let with = |offset: u64| {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        Header::parse(&bytes).unwrap_err().to_string()
    };
    assert_eq!(with(33), "tensor `b` begins at offset 33, which is no multiple of the alignment, 32");
    assert_eq!(with(0), "tensors `a` and `b` overlap");
    assert!(with(64).contains("it is cut off: tensor `b` ends at byte"));
    assert!(with(u64::MAX - 31).contains("it is cut off: tensor `b`"));
}

#[test]
fn the_golden_files_are_read() {
    for name in ["llama_f32", "llama_q8_0", "llama_mixed"] {
        let bytes = fs_err::read(golden(&format!("gguf/{name}.gguf"))).unwrap();
        let types = taper_testkit::read_json(&golden(&format!("gguf/{name}.json")))["types"].clone();
        let header = Header::parse(&bytes).unwrap();
        for (tensor, expected) in types.as_object().unwrap() {
            assert_eq!(header.tensors[tensor].ggml_type.name(), expected, "{name} {tensor}");
        }
        assert_eq!(types.as_object().unwrap().len(), header.tensors.len());
        assert_eq!(header.tensors["blk.0.ffn_up.weight"].shape, [128, 64]);
    }
}

#[test]
fn real_files_are_read() {
    let Some(real) = real_data_or_skip("the headers of real GGUF files") else { return };
    let mut seen = 0;
    for folder in ["gguf", "gguf/vocab"] {
        for entry in fs_err::read_dir(real.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "gguf") {
                let header = Header::parse(&fs_err::read(&path).unwrap()).unwrap();
                assert!(
                    header.metadata.text("general.architecture").unwrap().is_some(),
                    "{}",
                    path.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen >= 6, "{seen} files");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::parse(&bytes);
        let _ = Header::parse(&[&b"GGUF\x03\0\0\0"[..], &bytes].concat());
    }

    #[test]
    fn no_change_of_a_good_file_makes_the_reader_panic_or_reach_outside(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = good().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for file in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
            if let Ok(header) = Header::parse(file) {
                for tensor in header.tensors.values() {
                    prop_assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= file.len());
                }
                let _ = hub_tensors(&header);
            }
        }
    }
}
