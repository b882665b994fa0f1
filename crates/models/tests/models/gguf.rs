//! Configurations that were made from GGUF files are those of the checkpoints that the files were made from.

use taper_hub::ModelFiles;
use taper_models::ModelConfig;
use taper_testkit::{golden, real_data_or_skip};

#[test]
fn the_golden_files_have_the_configuration_of_their_checkpoint() {
    let expected = ModelConfig::read(&golden("models/llama_untied/config.json").into()).unwrap();
    for name in ["llama_f32", "llama_q8_0", "llama_mixed"] {
        let files = ModelFiles::of_gguf(&golden(&format!("gguf/{name}.gguf"))).unwrap();
        let config = ModelConfig::read(&files.config).unwrap();
        // The type is the file's own.
        assert_eq!(ModelConfig { dtype: expected.dtype, ..config }, expected, "{name}");
    }
}

#[test]
fn a_real_file_has_the_configuration_of_its_folder() {
    let Some(real) = real_data_or_skip("the configuration of stories260K") else { return };
    let expected = ModelConfig::read(&real.join("models/stories260K-hf/config.json").into()).unwrap();
    for kind in ["f32", "q8_0"] {
        let files = ModelFiles::of_gguf(&real.join(format!("gguf/stories260K-{kind}.gguf"))).unwrap();
        let config = ModelConfig::read(&files.config).unwrap();
        let tied = expected.tie_word_embeddings || kind != "f32";
        assert_eq!(
            ModelConfig { dtype: expected.dtype, tie_word_embeddings: tied, ..config },
            ModelConfig { tie_word_embeddings: tied, ..expected.clone() },
            "{kind}"
        );
    }
}
