//! The command line of `taper bench`.

use super::QuantizeArgs;
use crate::device::DeviceChoice;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

const SERVE_HELP: &str = "\
Examples:
  taper bench serve --url http://127.0.0.1:8080 --concurrency 8 --requests 64
  taper bench serve --rate 4 --duration 60 --prompt-tokens 512 --tokens 64
  taper bench serve --model base --model a --model b --adapters distinct --concurrency 8

Any server that speaks OpenAI's API: taper, llama.cpp, vLLM. Without --rate the loop is closed:
each client sends its next request when its last one has ended. With it the loop is open: requests
arrive at random times (Poisson), whether or not earlier ones have ended, and times are counted
from the arrival that was meant. Nothing is asked twice: refusals (429, 503) are counted apart from
failures. The key is taken from TAPER_API_KEY. A percentile p is the smallest time that at least
p % of the times do not exceed.

Exit code 4 when no request was answered.";

/// What to measure.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum BenchVerb {
    /// Optimiser steps of a rank-16 LoRA on all linear layers, random weights
    Train(BenchTrainArgs),
    /// Greedy decoding, of random weights or of a file
    Generate(BenchGenerateArgs),
    /// A running server under load: throughput, times to the first token and between tokens
    #[command(after_help = SERVE_HELP)]
    Serve(Box<BenchServeArgs>),
}

/// The model of a benchmark.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchModelArgs {
    /// 15M, smollm2-135m, qwen2.5-0.5b, llama3.2-1b, llama3.1-8b or llama3.1-70b
    #[arg(long, default_value = "15M")]
    pub(crate) shape: String,
    /// Type the frozen weights are held in: f32, bf16 or f16
    #[arg(long, default_value = "bf16", value_parser = ["f32", "bf16", "f16"])]
    pub(crate) dtype: String,
    #[command(flatten)]
    pub(crate) quantize: QuantizeArgs,
    /// Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DeviceChoice,
}

/// Optimiser steps.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchTrainArgs {
    #[command(flatten)]
    pub(crate) model: BenchModelArgs,
    /// Sequences a step
    #[arg(long, default_value_t = 4)]
    pub(crate) batch: usize,
    /// Tokens a sequence
    #[arg(long, default_value_t = 256)]
    pub(crate) seq: usize,
    /// Measured steps, after one that is not
    #[arg(long, default_value_t = 5)]
    pub(crate) steps: usize,
    /// Run each block again in the backward instead of keeping what it needs
    #[arg(long)]
    pub(crate) checkpointing: bool,
}

/// Decoding in this process.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchGenerateArgs {
    #[command(flatten)]
    pub(crate) model: BenchModelArgs,
    /// A folder or a GGUF file in place of the shape's random weights
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "shape")]
    pub(crate) model_file: Option<PathBuf>,
    /// Sequences at once
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 64)]
    pub(crate) prompt: usize,
    /// New tokens of each sequence
    #[arg(long, default_value_t = 64)]
    pub(crate) tokens: usize,
}

/// A server and the load to put on it.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchServeArgs {
    /// Where the server listens
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
    /// A model to ask for; may be given more than once [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Vec<String>,
    /// How requests are spread over several models: distinct (in turn), uniform (at random) or skewed (at random, the k-th with
    /// weight 1/k)
    #[arg(long, value_enum, default_value_t = Spread::Distinct, value_name = "HOW", hide_possible_values = true)]
    pub(crate) adapters: Spread,
    /// Which endpoint: chat (/v1/chat/completions) or completions (/v1/completions)
    #[arg(long, value_enum, default_value_t = Api::Chat, value_name = "API", hide_possible_values = true)]
    pub(crate) api: Api,
    /// Closed loop: clients, each with one request at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) concurrency: usize,
    /// Open loop: arrivals a second, on average
    #[arg(long, value_name = "R", conflicts_with = "concurrency")]
    pub(crate) rate: Option<f64>,
    /// Open loop: most requests in flight at once; what arrives beyond them is sent late, and told as such
    #[arg(long, value_name = "N", default_value_t = 512, requires = "rate")]
    pub(crate) max_in_flight: usize,
    /// Measured requests [default: 64 without --duration]
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    pub(crate) requests: Option<usize>,
    /// Seconds in which requests are begun; those in flight are waited for
    #[arg(long, value_name = "S")]
    pub(crate) duration: Option<u64>,
    /// Requests before the measured ones, in turn over the models [default: one for each client and each model]
    #[arg(long, value_name = "N")]
    pub(crate) warmup: Option<usize>,
    /// Tokens of a prompt of random words, about: two requests before the load show how many words that takes
    #[arg(long, value_name = "P", default_value_t = 128, conflicts_with = "prompts")]
    pub(crate) prompt_tokens: usize,
    /// So many of the prompt's tokens, about, are the same in every request: what a prefix cache can use
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "prompts")]
    pub(crate) shared_prefix: usize,
    /// JSONL with `messages` or `prompt` in each row, asked in turn, in place of random words
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Tokens of each answer; end-of-text tokens are ignored where the server knows `ignore_eos`
    #[arg(long, value_name = "T", default_value_t = 128)]
    pub(crate) tokens: usize,
    /// Seconds until a request is given up as failed
    #[arg(long, value_name = "S", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// The same seed asks the same prompts of the same models at the same times
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one machine-readable object on stdout in place of the table
    #[arg(long)]
    pub(crate) json: bool,
}

/// How requests are spread over models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Spread {
    /// In turn: as many different ones in flight as there can be
    Distinct,
    /// Evenly at random
    Uniform,
    /// The k-th with weight 1/k
    Skewed,
}

/// An endpoint of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Api {
    /// /v1/chat/completions
    Chat,
    /// /v1/completions
    Completions,
}
