//! Keys that change how something is computed and not what comes out: the passes through the model are counted.

use crate::world::World;
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use taper_data::{DataLoader, DataLoaderOptions, PreparedData, TextEncoder};
use taper_eval::{Answers, EvalTask, Prompting, Renderer, Work};
use taper_hub::ModelFiles;
use taper_models::{CausalLm, LoadOptions, ModelConfig};
use taper_nn::{ForwardContext, ModuleMut, VisitModules};
use taper_recipe::{Recipe, resolve};
use taper_text::{ChatTemplate, Tokenizer, TokenizerFiles};
use taper_train::{RunPlace, Sections, Silent, Start, Trained, Trainer, TrainingData};

/// The keys that are tried here.
pub(crate) const COUNTED: [&str; 2] = ["train.gradient_checkpointing", "eval.batch_size"];

/// A model that counts.
struct Counting {
    model: Box<dyn CausalLm>,
    passes: AtomicUsize,
    blocks: AtomicUsize,
}

impl VisitModules for Counting {
    fn visit_modules(
        &mut self,
        visit: &mut dyn FnMut(ModuleMut<'_>) -> taper_nn::Result<()>,
    ) -> taper_nn::Result<()> {
        self.model.visit_modules(visit)
    }
}

impl CausalLm for Counting {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn clone_boxed(&self) -> Box<dyn CausalLm> {
        self.model.clone_boxed()
    }

    fn activation_dtype(&self) -> DType {
        self.model.activation_dtype()
    }

    fn embed(&self, input_ids: &[u32]) -> taper_nn::Result<Tensor> {
        self.passes.fetch_add(1, Ordering::SeqCst);
        self.model.embed(input_ids)
    }

    fn num_blocks(&self) -> usize {
        self.model.num_blocks()
    }

    fn block(&self, index: usize, x: &Tensor, ctx: &mut ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        self.blocks.fetch_add(1, Ordering::SeqCst);
        self.model.block(index, x, ctx)
    }

    fn final_norm(&self, x: &Tensor) -> taper_nn::Result<Tensor> {
        self.model.final_norm(x)
    }

    fn lm_head(&self, x: &Tensor, ctx: &ForwardContext<'_>) -> taper_nn::Result<Tensor> {
        self.model.lm_head(x, ctx)
    }
}

/// What a recipe needs to be trained and evaluated in this process.
struct Bench {
    recipe: Recipe,
    model: Counting,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Bench {
    fn new(world: &World, set: Option<&str>) -> Self {
        let sets: Vec<String> = set.into_iter().map(str::to_owned).collect();
        let recipe = resolve(&world.path("recipe.toml"), &sets).unwrap().recipe;
        let files = ModelFiles::of_folder(Path::new(&recipe.model.base)).unwrap();
        let texts = TokenizerFiles {
            tokenizer: files.tokenizer.clone(),
            tokenizer_config: files.tokenizer_config.clone(),
            special_tokens_map: files.special_tokens_map.clone(),
            generation_config: files.generation_config.clone(),
            chat_template: files.chat_template.clone(),
        };
        let tokenizer = Tokenizer::load(&texts).unwrap();
        let template = ChatTemplate::load(&texts, &tokenizer).unwrap();
        let model = taper_models::load(&files, LoadOptions::default()).unwrap();
        let model = Counting { model, passes: AtomicUsize::new(0), blocks: AtomicUsize::new(0) };
        Self { recipe, model, tokenizer, template }
    }

    fn encoder(&self) -> TextEncoder<'_> {
        TextEncoder::new(&self.tokenizer, self.template.as_ref(), self.recipe.data.supervise)
    }

    fn data(&self) -> PreparedData {
        let seed = self.recipe.train.seed;
        taper_data::prepare(&self.recipe.data, Path::new(""), seed, &self.encoder()).into_result().unwrap()
    }

    /// The trained values and the runs of a block.
    fn trained(mut self) -> (Vec<Vec<f32>>, usize) {
        let options = DataLoaderOptions {
            batch_size: self.recipe.train.batch_size,
            gradient_accumulation_steps: 1,
            max_length: self.recipe.data.max_length,
            packing: false,
            shuffle: true,
            seed: self.recipe.train.seed,
            num_epochs: None,
        };
        let train = DataLoader::new(self.data().train.tokenized, options).unwrap();
        let config = self.recipe.adapter.as_ref().unwrap().to_config("base");
        let trained = Trained::adapter(taper_peft::attach(&mut self.model, &config, "llama", 1).unwrap());
        let sections = Sections {
            train: self.recipe.train.clone(),
            optimizer: self.recipe.optimizer.clone(),
            schedule: self.recipe.schedule.clone(),
        };
        let folder = tempfile::tempdir().unwrap();
        let place = RunPlace {
            folder: folder.path().to_owned(),
            fingerprints: Default::default(),
            start: Start::Fresh,
            interrupt: Default::default(),
        };
        let data = TrainingData { train, valid: Vec::new() };
        Trainer::new(&self.model, &trained, data, &sections, place).unwrap().run(&mut Silent).unwrap();
        (trained.values().unwrap(), self.model.blocks.load(Ordering::SeqCst))
    }

    /// The answers and the passes they took.
    fn evaluated(self) -> (Answers, usize) {
        let encoder = self.encoder();
        let template = self.template.as_ref();
        let renderer = Renderer { tokenizer: &self.tokenizer, template, encoder: &encoder };
        let (examples, none) = (self.data().test.examples, BTreeMap::new());
        let task =
            EvalTask::prepare(&self.recipe.eval[0], &examples, &Prompting::default(), &renderer, &none)
                .unwrap();
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        let work = Work::new(&task, "", None, false);
        let answers = work.answer(("base", ""), &self.model, &self.tokenizer, go_on).unwrap().unwrap();
        (answers, self.model.passes.load(Ordering::SeqCst))
    }
}

#[test]
fn gradient_checkpointing_runs_the_blocks_again_and_trains_the_same() {
    let world = World::new();
    let (values, blocks) = Bench::new(&world, None).trained();
    let (again_values, again_blocks) =
        Bench::new(&world, Some("train.gradient_checkpointing=true")).trained();
    assert_eq!(again_blocks, 2 * blocks);
    assert_eq!(again_values, values);
}

#[test]
fn the_batch_size_of_an_evaluation_makes_passes_and_not_answers() {
    let world = World::new();
    let (result, passes) = Bench::new(&world, None).evaluated();
    let (one_by_one, more_passes) = Bench::new(&world, Some("eval.0.batch_size=1")).evaluated();
    assert!(more_passes > passes, "{more_passes} passes one by one, {passes} together");
    // Which texts share a pass moves the last bits of a loss.
    for (one, other) in one_by_one.responses.iter().zip(&result.responses) {
        assert_eq!(one.output, other.output);
    }
}
