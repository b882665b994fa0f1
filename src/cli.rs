//! The command line. Scripts and CI depend on it: verbs, flags and exit codes stay.

mod bench;
mod serve;

pub(crate) use bench::{
    Api, BenchGenerateArgs, BenchModelArgs, BenchServeArgs, BenchTrainArgs, BenchVerb, Spread,
};
pub(crate) use serve::{ListenArgs, ServeArgs, WorkArgs};

use crate::device::DeviceChoice;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const AFTER_HELP: &str = "\
Examples:
  taper run recipes/quickstart.toml   the whole way, from the data to the report
  taper check my.toml                 all that is wrong with recipe and data
  taper smoke my.toml                 in minutes: does the recipe still work and do the same
  taper plan my.toml --probe          what it will take, held against two real steps
  taper generate --model BASE --adapter runs/my/adapter --prompt 'Hello'
  taper serve my.toml                 the base and what was trained, over HTTP

Exit codes:
    0  passed
    1  a fault of taper itself
    2  what was given is wrong: a recipe, a file, a flag
    4  nothing was evaluated
    5  inconclusive: not enough data to say
  100  a gate or a check of the smoke tier failed, or an export lost what was trained
  130  interrupted; a checkpoint was written";

const PLAN_HELP: &str = "\
Examples:
  taper plan my.toml --set train.batch_size=4 --set train.gradient_accumulation_steps=4
  taper plan my.toml --gpu-memory 24GiB        for a card that is not in this machine

Reads config.json, the headers of the weights and the data; no weights. The peak is that of the
largest phase, not a sum of all. When it is more than the memory that is free, settings with which
it fits are named.";

const EVAL_HELP: &str = "\
Examples:
  taper eval my.toml
  taper eval my.toml --set eval.0.data=other.jsonl --set eval.0.name=other

Writes report.html, report.md, junit.xml and eval/ in the run's folder. What was answered before is not
asked again: after Ctrl-C the same command goes on. Kept answers lie in TAPER_CACHE_DIR, else in the user's
cache folder; `data.cache = false` keeps none.";

const VERIFY_HELP: &str = "\
Examples:
  taper verify runs/my
  taper verify stored/my --recipe recipes/my.toml      in CI, on a machine without the base

Scores, intervals, verdicts and gates are computed again from eval/samples.jsonl and held against
eval/results.json; files are held against the hashes in eval/lock.json. With a recipe its gates are
held, and a run of another recipe or other data is refused.

Exit codes: 100 when something is not as the run says, else as of the run: 0, 4, 5 or 100.";

const EXPORT_HELP: &str = "\
Examples:
  taper export my.toml                                  what the recipe asks for
  taper export my.toml --format peft,merged             the adapter, and a whole model
  taper export my.toml --format merged --set export.merged_dtype=bf16
  taper export my.toml --format gguf,ollama --gguf-type q4_k_m

Each artefact is read back from the disk and held against base and adapter on held-out examples:
how far its predictions are, and which share of the adapter's gain on the loss it keeps. Below
`export.min_gain_kept` (0.9) the export fails with exit code 100. The numbers go into the card.

A merged model is written matrix by matrix: that takes the memory of the largest one. For its
proof it is loaded, or read from the disk where it is larger than the memory that is free.";

const SMOKE_HELP: &str = "\
Examples:
  taper smoke my.toml
  taper smoke my.toml --set smoke.max_steps=10 --json

Minutes on a CPU, for each change of a recipe; `[smoke]` in the recipe says over which base, for how
many steps, and which loss is expected. The recipe and its data are checked (what is learned, what
training and test rows share); the training is run twice, once with an interruption in its middle,
and both must give the same bytes; the last loss is held to `smoke.golden_loss`; base and adapter
answer a few items. Gates are not held: a few steps over a small base prove nothing about quality.

The folder gets smoke.json and junit.xml with every check, and the report. It is made anew.
Exit codes: 0 when every check passed, 100 when one failed, 2 when recipe or data are wrong.";

const ADAPTER_HELP: &str = "\
Examples:
  taper adapter show runs/my/adapter
  taper adapter check lora-from-the-hub --base models/llama --prompt 'Hello'

An adapter is a folder as PEFT, mlx-lm or torchtune write it.";

const SHOW_HELP: &str = "\
Example:
  taper adapter show runs/my/adapter --json

Reads the adapter's two files alone. The table at the end tells for PEFT, transformers, vLLM,
llama.cpp, Ollama, MLX and taper what each would scale wrongly, drop or refuse.";

const COMBINE_HELP: &str = "\
Examples:
  taper adapter combine runs/a/adapter=0.7 runs/b/adapter=0.3 --out both
  taper adapter combine runs/a/adapter runs/b/adapter --combination-type ties --density 0.5 --out both

`cat` is the weighted sum of the deltas, exactly, with the ranks added up; `svd` cuts it to a rank. The other
types are PEFT's of the same names. Adapters that have more than A and B are refused.";

const CHECK_HELP: &str = "\
Example:
  taper adapter check runs/my/adapter --base models/tiny --prompt 'Where is my order?'

Exit codes: 0 when the adapter fits and moves the logits; 100 when it loads but moves nothing, or
makes logits that are NaN or infinite; 2 when it cannot be used on this base.";

/// Fine-tune small language models from JSONL by a recipe, prove the adapter, export it, generate with it.
#[derive(Debug, Parser)]
#[command(name = "taper", version, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Check, train, evaluate base and adapter, gate, export, report
    Run(RunArgs),
    /// Tell all that is wrong with a recipe and its data, with places; loads no weights
    Check(RecipeArgs),
    /// Tell what a recipe will take before it runs: memory by cause, steps, what its test data can show
    Plan(PlanArgs),
    /// Show an example as the model will see it: text, token, id, role, supervised or not
    Explain(ExplainArgs),
    /// The training part alone
    Train(RunArgs),
    /// The evaluation part alone: base, the adapter of a run and every other candidate of the recipe
    Eval(EvalArgs),
    /// Compute scores and verdict of a run again from what it stored, without its model
    Verify(VerifyArgs),
    /// Write artefacts from the adapter of a run, with proof
    Export(ExportArgs),
    /// Prove in minutes that a recipe works: checks, a short training, resume equality, golden loss
    Smoke(SmokeArgs),
    /// Answer one prompt
    Generate(GenerateArgs),
    /// Chat in the terminal
    Chat(ChatArgs),
    /// Serve a base and its adapters over HTTP, as OpenAI and Ollama do
    Serve(Box<ServeArgs>),
    /// Look at an adapter, whoever wrote it: what it is, whether it works on a base
    #[command(after_help = ADAPTER_HELP)]
    Adapter {
        #[command(subcommand)]
        verb: AdapterVerb,
    },
    /// The built-in recipes
    Recipe {
        #[command(subcommand)]
        verb: RecipeVerb,
    },
    /// Throughput of training and decoding for a model shape, and of a server under load
    Bench {
        #[command(subcommand)]
        verb: BenchVerb,
    },
}

/// A recipe and what overrides it.
#[derive(Debug, Clone, Args)]
pub(crate) struct RecipeArgs {
    /// The recipe file
    pub(crate) recipe: PathBuf,
    /// Override a key of the recipe, for example `--set train.max_steps=20`; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// A recipe and the folder of its run.
#[derive(Debug, Clone, Args)]
pub(crate) struct FolderArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// The run's folder [default: runs/NAME of the recipe]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommonArgs {
    /// Print one machine-readable object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// Never use the network, even for a hub id: take what is in the cache
    #[arg(long)]
    pub(crate) offline: bool,
}

/// A recipe to run, from the start or from its newest checkpoint.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// Go on from the newest whole checkpoint in the run's folder
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) resume: bool,
    /// Remove what an earlier run left in the run's folder, and begin again
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// A recipe to plan.
#[derive(Debug, Clone, Args)]
#[command(after_help = PLAN_HELP)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Load the model and make two real steps on the longest batch, to hold the plan against what they took; nothing is
    /// written, the model is thrown away
    #[arg(long)]
    pub(crate) probe: bool,
    /// Plan for a GPU with so much memory, for example 24GiB, which need not be in this machine
    #[arg(long, value_name = "SIZE", value_parser = memory_size, conflicts_with = "probe")]
    pub(crate) gpu_memory: Option<u64>,
}

fn memory_size(text: &str) -> Result<u64, String> {
    taper_hub::bytes_of(text)
        .ok_or_else(|| "a number with `MiB`, `GiB`, `MB` or `GB` behind it is meant".to_owned())
}

/// Which example to explain.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Which training example, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) sample: usize,
}

/// What to evaluate.
#[derive(Debug, Clone, Args)]
#[command(after_help = EVAL_HELP)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// Evaluate over this base even where the adapter's taper.json says that it was trained over another
    #[arg(long)]
    pub(crate) force: bool,
}

/// A run to verify.
#[derive(Debug, Clone, Args)]
#[command(after_help = VERIFY_HELP)]
pub(crate) struct VerifyArgs {
    /// The run's folder, with its `eval/`
    pub(crate) run: PathBuf,
    /// The recipe as it is now: a run of another recipe or other data is refused as stale, and its gates are held
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    /// Override a key of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "recipe")]
    pub(crate) sets: Vec<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What to export.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXPORT_HELP)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) folder: FolderArgs,
    /// Formats, comma-separated: peft, merged, gguf, gguf-adapter, mlx, ollama [default: those of the recipe]
    #[arg(long, value_delimiter = ',', value_name = "FORMATS")]
    pub(crate) format: Vec<String>,
    /// Type of the weights in a GGUF file: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m or q4_0 [default: that of the recipe, q8_0]
    #[arg(long, value_name = "TYPE")]
    pub(crate) gguf_type: Option<String>,
    /// Export over this base even where the adapter's taper.json says that it was trained over another
    #[arg(long)]
    pub(crate) force: bool,
}

/// A recipe whose smoke tier is run.
#[derive(Debug, Clone, Args)]
#[command(after_help = SMOKE_HELP)]
pub(crate) struct SmokeArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// The folder to write to, one of its own [default: runs/NAME-smoke of the recipe]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// An adapter's folder, and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WeightedFolder {
    pub(crate) folder: PathBuf,
    pub(crate) weight: f64,
}

/// `DIR` or `DIR=WEIGHT`; what follows a last `=` and is no number belongs to the folder's name.
fn weighted_folder(text: &str) -> Result<WeightedFolder, String> {
    if let Some((folder, weight)) = text.rsplit_once('=')
        && let Ok(weight) = weight.parse::<f64>()
    {
        if !weight.is_finite() || folder.is_empty() {
            return Err("expected a folder and a weight, as runs/my/adapter=0.5".to_owned());
        }
        return Ok(WeightedFolder { folder: folder.into(), weight });
    }
    Ok(WeightedFolder { folder: text.into(), weight: 1.0 })
}

/// A model, perhaps with an adapter.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// The base: a folder, a GGUF file, or a hub id `owner/name`
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) quantize: QuantizeArgs,
    /// A folder with an adapter, as PEFT, mlx-lm or torchtune write it; may be given several times, each with a weight: their deltas are summed
    #[arg(long, value_name = "DIR[=WEIGHT]", value_parser = weighted_folder)]
    pub(crate) adapter: Vec<WeightedFolder>,
    /// Use the adapter even where its taper.json says that it was trained over another base, tokenizer or chat template
    #[arg(long, requires = "adapter")]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What frozen weights are quantised to while they are loaded.
#[derive(Debug, Clone, Args)]
pub(crate) struct QuantizeArgs {
    /// Quantise the linear layers while loading, as `model.quantize` of a recipe does
    #[arg(long, value_name = "FORMAT", value_parser = ["nf4", "fp4", "int8", "q8_0", "q6_k", "q5_k", "q4_k", "q4_0"])]
    pub(crate) quantize: Option<String>,
    /// Code the scales of nf4 or fp4 in 8 bits as well, as `model.double_quant` does
    #[arg(long, requires = "quantize")]
    pub(crate) double_quant: bool,
}

/// How to sample.
#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArgs {
    /// Most tokens of an answer
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub(crate) max_new_tokens: usize,
    /// 0 takes the likeliest token each time; 1 samples from the model's own distribution
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Sample from the fewest tokens whose probabilities sum to this; 1 keeps all
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: f64,
    /// Sample from the K likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub(crate) top_k: usize,
    /// Drop tokens less likely than this share of the likeliest; 0 keeps all
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: f64,
    /// The same seed gives the same answer
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// End the answer before this text; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

/// One prompt.
#[derive(Debug, Clone, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The prompt; `-` reads it from stdin. With a chat template it is the user's message
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// A system message before it
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Take the prompt as it is, without the chat template
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// A conversation.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A system message
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// What to ask of an adapter.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum AdapterVerb {
    /// Tell what it is: method, base, ranks, scale, norms, and what would be lost where; loads no base
    Show(AdapterShowArgs),
    /// Load it on a base and tell whether it fits and moves the logits
    Check(AdapterCheckArgs),
    /// Make one adapter of several, weighted
    Combine(AdapterCombineArgs),
}

/// Adapters to combine.
#[derive(Debug, Clone, Args)]
#[command(after_help = COMBINE_HELP)]
pub(crate) struct AdapterCombineArgs {
    /// The adapters' folders, each perhaps with a weight
    #[arg(required = true, num_args = 2.., value_name = "DIR[=WEIGHT]", value_parser = weighted_folder)]
    pub(crate) adapters: Vec<WeightedFolder>,
    /// The new adapter's folder, which must not be there yet
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How, by PEFT's names
    #[arg(long, value_name = "TYPE", default_value = "cat", value_parser = [
        "cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
        "magnitude_prune", "magnitude_prune_svd",
    ])]
    pub(crate) combination_type: String,
    /// Share of the numbers that pruning leaves (ties, dare and magnitude_prune)
    #[arg(long)]
    pub(crate) density: Option<f64>,
    /// Rank of what is cut to one (the types on svd) [default: the largest of the adapters']
    #[arg(long)]
    pub(crate) svd_rank: Option<usize>,
    /// In the vote on a sign (ties), count adapters in place of summing their numbers
    #[arg(long)]
    pub(crate) majority_by_frequency: bool,
    /// Seed of what is dropped at random (dare)
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// An adapter to show.
#[derive(Debug, Clone, Args)]
#[command(after_help = SHOW_HELP)]
pub(crate) struct AdapterShowArgs {
    /// The adapter's folder
    pub(crate) dir: PathBuf,
    /// List the norm of every module, not the largest and smallest alone
    #[arg(long)]
    pub(crate) modules: bool,
    /// Print one machine-readable object on stdout, with every module
    #[arg(long)]
    pub(crate) json: bool,
}

/// An adapter and a base to hold it against.
#[derive(Debug, Clone, Args)]
#[command(after_help = CHECK_HELP)]
pub(crate) struct AdapterCheckArgs {
    /// The adapter's folder
    pub(crate) dir: PathBuf,
    /// The base: a folder, a GGUF file, or a hub id `owner/name`
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: String,
    #[command(flatten)]
    pub(crate) quantize: QuantizeArgs,
    /// A text to compare the logits on; may be given more than once [default: four built-in texts]
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Vec<String>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What to do with the built-in recipes.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum RecipeVerb {
    /// List them
    Ls,
    /// Print one
    Show {
        /// Its name, as `ls` prints it
        name: String,
    },
    /// Copy one to a file to change
    Cp {
        /// Its name, as `ls` prints it
        name: String,
        /// The file to write [default: the name's last part, here]
        to: Option<PathBuf>,
    },
}
