//! A contract made of a base and an adapter, held against the same base, others, and changed files.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::collections::BTreeMap;
use std::path::Path;
use taper_export::{BaseInUse, CONTRACT_SCHEMA, Contract, GoldenPrompt, LayerScale, ScaleFacts};
use taper_hub::ModelFiles;
use taper_models::{CausalLm, LoadOptions, Quantize, load};
use taper_peft::{AdapterSection, InitLoraWeights};
use taper_quant::BlockFormat;
use taper_testkit::{TinySpec, golden, tiny_checkpoint};
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};

/// A base in its folder, opened.
struct Opened {
    files: ModelFiles,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Opened {
    fn new(folder: &Path) -> Self {
        Self::of(ModelFiles::of_folder(folder).unwrap())
    }

    fn of(files: ModelFiles) -> Self {
        let texts = TokenizerFiles {
            tokenizer: files.tokenizer.clone(),
            tokenizer_config: files.tokenizer_config.clone(),
            special_tokens_map: files.special_tokens_map.clone(),
            generation_config: files.generation_config.clone(),
            chat_template: files.chat_template.clone(),
        };
        let tokenizer = Tokenizer::load(&texts).unwrap();
        let template = ChatTemplate::load(&texts, &tokenizer).unwrap();
        Self { files, tokenizer, template }
    }

    fn in_use(&self) -> BaseInUse<'_> {
        let (files, tokenizer, template) = (&self.files, &self.tokenizer, self.template.as_ref());
        BaseInUse { name: "base", files, tokenizer, template, hashes: None }
    }

    fn differences(&self, contract: &Contract) -> Vec<String> {
        contract.differences(&self.in_use()).unwrap().iter().map(ToString::to_string).collect()
    }

    fn model(&self, options: LoadOptions) -> Box<dyn CausalLm> {
        let mut model = load(&self.files, options).unwrap();
        let section =
            AdapterSection { init_lora_weights: InitLoraWeights::Random, ..AdapterSection::default() };
        taper_peft::attach(model.as_mut(), &section.to_config("base"), "llama", 7).unwrap();
        model
    }
}

fn made(base: &Opened) -> Contract {
    let in_use = base.in_use();
    let layer = LayerScale { r: 16, lora_alpha: 32.0, scale: 2.0 };
    Contract {
        schema: CONTRACT_SCHEMA,
        taper: "0.1.0".into(),
        base: in_use.base_facts(None).unwrap(),
        tokenizer: in_use.tokenizer_facts().unwrap(),
        chat_template: in_use.template_text(),
        scale: ScaleFacts { meaning: "words".into(), layers: BTreeMap::from([("q_proj".to_owned(), layer)]) },
        data: Vec::new(),
        evaluation: Vec::new(),
        golden: GoldenPrompt::ask(base.model(LoadOptions::default()).as_ref(), &in_use).unwrap(),
    }
}

fn change(path: &Path, from: &str, to: &str) {
    let text = fs_err::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {}", path.display());
    fs_err::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn the_same_base_has_no_difference_wherever_it_lies_and_whatever_it_is_quantised_to() {
    let here = tempfile::tempdir().unwrap();
    tiny_checkpoint(&here.path().join("base"), &TinySpec::default());
    tiny_checkpoint(&here.path().join("elsewhere"), &TinySpec::default());
    let base = Opened::new(&here.path().join("base"));
    let contract = made(&base);
    assert_eq!(base.differences(&contract), [""; 0]);
    let elsewhere = here.path().join("elsewhere");
    fs_err::rename(elsewhere.join("model.safetensors"), elsewhere.join("weights.safetensors")).unwrap();
    assert_eq!(Opened::new(&elsewhere).differences(&contract), [""; 0]);
    let text = serde_json::to_string(&contract).unwrap();
    assert_eq!(serde_json::from_str::<Contract>(&text).unwrap(), contract, "logits survive their digits");
}

#[test]
fn each_change_of_a_base_is_named() {
    let here = tempfile::tempdir().unwrap();
    let folder = here.path().join("base");
    tiny_checkpoint(&folder, &TinySpec::default());
    let contract = made(&Opened::new(&folder));
    let with = |change_it: &dyn Fn(&Path)| {
        let other = here.path().join("other");
        tiny_checkpoint(&other, &TinySpec::default());
        change_it(&other);
        let found = Opened::new(&other).differences(&contract);
        fs_err::remove_dir_all(&other).unwrap();
        found
    };
    let flipped = with(&|folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs_err::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs_err::write(path, bytes).unwrap();
    });
    assert_eq!(flipped.len(), 1);
    assert!(flipped[0].starts_with("base: `model.safetensors` has the SHA-256 "), "{flipped:?}");
    let other_seed = with(&|folder| {
        fs_err::remove_dir_all(folder).unwrap();
        tiny_checkpoint(folder, &TinySpec { num_hidden_layers: 3, ..TinySpec::default() });
    });
    assert!(
        other_seed[0].contains("`model.safetensors` has ") && other_seed[0].contains(" bytes"),
        "{other_seed:?}"
    );
    assert!(other_seed[1].contains("`num_hidden_layers` in config.json is 3"), "{other_seed:?}");
    let template = with(&|folder| change(&folder.join("chat_template.jinja"), "im_start", "im_Start"));
    assert!(template[0].starts_with("chat template: line "), "{template:?}");
}

#[test]
fn a_gguf_file_is_itself_again_and_no_folder() {
    let here = tempfile::tempdir().unwrap();
    let copy = here.path().join("renamed.gguf");
    fs_err::copy(golden("gguf/llama_f32.gguf"), &copy).unwrap();
    let contract = made(&Opened::of(ModelFiles::of_gguf(&golden("gguf/llama_f32.gguf")).unwrap()));
    assert_eq!(Opened::of(ModelFiles::of_gguf(&copy).unwrap()).differences(&contract), [""; 0]);
    let other = Opened::of(ModelFiles::of_gguf(&golden("gguf/llama_q8_0.gguf")).unwrap());
    assert!(
        other.differences(&contract)[0].contains("`llama_q8_0.gguf` has "),
        "{:?}",
        other.differences(&contract)
    );
    tiny_checkpoint(&here.path().join("base"), &TinySpec::default());
    let folder = Opened::new(&here.path().join("base")).differences(&contract);
    assert!(
        folder[0].contains("trained over `llama_f32.gguf`, and this is `model.safetensors`"),
        "{folder:?}"
    );
}

#[test]
fn golden_prompts_are_reproduced_by_the_same_pair_and_not_by_the_base_alone() {
    let here = tempfile::tempdir().unwrap();
    let folder = here.path().join("base");
    tiny_checkpoint(&folder, &TinySpec::default());
    let base = Opened::new(&folder);
    let contract = made(&base);
    assert_eq!(contract.golden.len(), 3);
    assert!(contract.golden.iter().all(|prompt| prompt.rendered && prompt.top.len() == 5));
    let model = base.model(LoadOptions::default());
    let same = contract.verify(model.as_ref(), &base.tokenizer).unwrap();
    assert!(same.passed(1e-4) && same.same_top1 == 3, "{same:?}");
    let alone = load(&base.files, LoadOptions::default()).unwrap();
    let alone = contract.verify(alone.as_ref(), &base.tokenizer).unwrap();
    assert!(!alone.passed(0.01), "{alone:?}");
    let format = BlockFormat::Int8;
    let quantize = Some(Quantize { format, embeddings: false });
    let coarse = base.model(LoadOptions { quantize, ..LoadOptions::default() });
    let coarse = contract.verify(coarse.as_ref(), &base.tokenizer).unwrap();
    assert!(coarse.same_tokens == 3 && coarse.max_abs_diff > same.max_abs_diff, "{coarse:?}");
    let mut hostile = contract.clone();
    hostile.golden[0].input_ids = vec![u32::MAX];
    assert!(hostile.verify(model.as_ref(), &base.tokenizer).is_err());
    hostile.golden[0].input_ids = vec![1; 5000];
    assert!(hostile.verify(model.as_ref(), &base.tokenizer).is_err());
}
