//! What is read, and what is refused.

use super::*;
use std::collections::HashMap;
use taper_diagnostics::Diagnose;

fn write(folder: &Path, name: &str, tensors: &[(&str, Tensor)]) -> PathBuf {
    let path = folder.join(name);
    let map: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&map, &path).unwrap();
    path
}

fn tensor(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn tensors_come_back_as_stored_and_as_asked() {
    let here = tempfile::tempdir().unwrap();
    let values = [1.0f32, -2.5, 3.0];
    let half = tensor(&values).to_dtype(DType::BF16).unwrap();
    let a = write(here.path(), "a.safetensors", &[("x", tensor(&values))]);
    let b = write(here.path(), "b.safetensors", &[("y", half)]);
    let checkpoint = Checkpoint::open(&[a, b], None).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(checkpoint.weight("x", None).unwrap().to_vec1::<f32>().unwrap(), values);
    assert_eq!(checkpoint.weight("y", None).unwrap().dtype(), DType::BF16);
    let y = checkpoint.weight("y", Some(DType::F32)).unwrap();
    assert_eq!(y.to_vec1::<f32>().unwrap(), values);
    checkpoint.expect_shape("y", &[3]).unwrap();
    assert!(checkpoint.same_bytes("x", "x").unwrap() && !checkpoint.same_bytes("x", "y").unwrap());
}

#[test]
fn a_missing_tensor_names_the_nearest_one() {
    let here = tempfile::tempdir().unwrap();
    let a = write(here.path(), "a.safetensors", &[("model.norm.weight", tensor(&[1.0]))]);
    let checkpoint = Checkpoint::open(std::slice::from_ref(&a), None).unwrap();
    let error = checkpoint.weight("model.nrm.weight", None).unwrap_err();
    assert_eq!(error.to_string(), format!("no tensor `model.nrm.weight` in `{}`", a.display()));
    assert_eq!(error.hint().unwrap(), "the nearest name is `model.norm.weight`");
    let error = checkpoint.expect_shape("model.norm.weight", &[2]).unwrap_err();
    assert_eq!(error.to_string(), "tensor `model.norm.weight` is [1], the model needs [2]");
}

#[test]
fn shards_must_agree_with_each_other_and_with_the_index() {
    let here = tempfile::tempdir().unwrap();
    let a = write(here.path(), "a.safetensors", &[("x", tensor(&[1.0]))]);
    let b = write(here.path(), "b.safetensors", &[("x", tensor(&[2.0]))]);
    let c = write(here.path(), "c.safetensors", &[("z", tensor(&[2.0]))]);
    assert!(matches!(Checkpoint::open(&[a.clone(), b], None), Err(CheckpointError::Twice { .. })));
    let index = here.path().join("index.json");
    fs_err::write(&index, r#"{"weight_map":{"x":"a.safetensors","z":"a.safetensors"}}"#).unwrap();
    let error = Checkpoint::open(&[a, c], Some(&index)).unwrap_err();
    assert!(matches!(&error, CheckpointError::NotInShard { tensor, .. } if tensor == "z"), "{error}");
}

#[test]
fn f16_refuses_weights_beyond_its_range() {
    let here = tempfile::tempdir().unwrap();
    let a = write(here.path(), "a.safetensors", &[("big", tensor(&[7e4])), ("edge", tensor(&[-65504.0]))]);
    let checkpoint = Checkpoint::open(&[a], None).unwrap();
    assert!(matches!(checkpoint.weight("big", Some(DType::F16)), Err(CheckpointError::Overflow { .. })));
    assert!(checkpoint.weight("edge", Some(DType::F16)).is_ok());
    assert!(checkpoint.weight("big", Some(DType::BF16)).is_ok());
}

#[test]
fn weights_are_floating_point() {
    let here = tempfile::tempdir().unwrap();
    let packed = Tensor::new(&[1u8, 2], &Device::Cpu).unwrap();
    let double = tensor(&[0.5]).to_dtype(DType::F64).unwrap();
    let a = write(here.path(), "a.safetensors", &[("packed", packed), ("double", double)]);
    let checkpoint = Checkpoint::open(&[a], None).unwrap();
    let error = checkpoint.weight("packed", None).unwrap_err();
    assert_eq!(error.to_string(), "tensor `packed` is stored as U8, which is not read");
    assert_eq!(checkpoint.weight("double", None).unwrap().dtype(), DType::F32);
    assert_eq!(checkpoint.weight("double", Some(DType::BF16)).unwrap().dtype(), DType::BF16);
}

#[test]
fn a_broken_file_is_named_with_what_is_wrong() {
    let here = tempfile::tempdir().unwrap();
    let path = here.path().join("model.safetensors");
    fs_err::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let error = Checkpoint::open(std::slice::from_ref(&path), None).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert!(error.hint().unwrap().contains("git lfs pull"));
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn values(checkpoint: &Checkpoint, name: &str, shape: [usize; 2]) -> Vec<f32> {
    crate::to_vec_f32(&checkpoint.matrix(name, shape, None).unwrap().to_f32().unwrap()).unwrap()
}

/// The converter's names and row order undone, the file is the folder that it was made from.
#[test]
fn a_gguf_file_has_the_hubs_names_and_rows() {
    let file = Checkpoint::open_gguf(&golden("gguf/llama_f32.gguf")).unwrap();
    let folder = Checkpoint::open(&[golden("models/llama_untied/model.safetensors")], None).unwrap();
    assert!(file.names().eq(folder.names()));
    for name in folder.names() {
        let (ours, expected) = (file.weight(name, None).unwrap(), folder.weight(name, None).unwrap());
        assert_eq!(ours.dims(), expected.dims(), "{name}");
        assert!(crate::to_vec_f32(&ours).unwrap() == crate::to_vec_f32(&expected).unwrap(), "{name}");
    }
}

/// The values that the gguf library reads from each block type, in the Hub's row order.
#[test]
fn quantised_matrices_of_a_gguf_file_have_the_references_values() {
    let heads = |name: &str| match name {
        _ if name.contains("q_proj") => 4,
        _ if name.contains("k_proj") => 2,
        _ => 0,
    };
    let path = golden("gguf/llama_mixed.gguf");
    let checkpoint = Checkpoint::open_gguf(&path).unwrap();
    let expected =
        candle_core::safetensors::load(golden("gguf/llama_mixed.safetensors"), &Device::Cpu).unwrap();
    let header = taper_hub::gguf::Header::parse(&fs_err::read(&path).unwrap()).unwrap();
    let mut in_blocks = 0;
    for tensor in taper_hub::gguf::hub_tensors(&header).unwrap() {
        let expected = &expected[&format!("dequant.{}", tensor.source)];
        let Ok((rows, columns)) = expected.dims2() else { continue };
        let expected = expected.to_vec2::<f32>().unwrap();
        let row_of = |row: usize| match heads(&tensor.name) {
            0 => row,
            heads => taper_hub::gguf::unpermuted_row(heads, rows / heads, row),
        };
        let expected: Vec<f32> = (0..rows).flat_map(|row| expected[row_of(row)].clone()).collect();
        assert!(values(&checkpoint, &tensor.name, [rows, columns]) == expected, "{}", tensor.name);
        let matrix = checkpoint.matrix(&tensor.name, [rows, columns], None).unwrap();
        in_blocks += usize::from(matrix.as_quantized().is_some());
    }
    assert_eq!(in_blocks, 12, "two tables, and five matrices in each of two blocks");
}

#[test]
fn a_broken_gguf_file_is_named() {
    let here = tempfile::tempdir().unwrap();
    let path = here.path().join("model.gguf");
    let mut bytes = fs_err::read(golden("gguf/llama_q8_0.gguf")).unwrap();
    bytes.truncate(bytes.len() / 2);
    fs_err::write(&path, bytes).unwrap();
    let error = Checkpoint::open_gguf(&path).unwrap_err();
    assert!(error.to_string().contains("model.gguf") && error.hint().is_some(), "{error}");
}
