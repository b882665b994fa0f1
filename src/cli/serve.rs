//! The flags of `taper serve`.

use super::{CommonArgs, QuantizeArgs};
use clap::Args;
use std::path::PathBuf;

const SERVE_HELP: &str = "\
Examples:
  taper serve my.toml                                        the base and the adapter of a run
  taper serve --model models/tiny --adapter support=runs/support/adapter
  taper serve --model owner/name --quantize q8_0 --adapter a=DIR --adapter b=DIR --max-batch 8
  taper serve my.toml --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem

Clients: OpenAI's API at /v1 (an adapter's name is its model id; the base is a model too), Ollama's
at /api, Prometheus at /metrics. A request may scale its adapter (`adapter_scale`) or sum several
over the base (`adapters`: [{\"name\", \"scale\"}]).

Ctrl-C or SIGTERM: no more requests are taken (/ready says 503), those in flight end, exit code 0.";

/// What to serve, and to whom.
#[derive(Debug, Clone, Args)]
#[command(after_help = SERVE_HELP)]
pub(crate) struct ServeArgs {
    /// A recipe: serve its base and the adapter of its run, as its `[serve]` says
    #[arg(conflicts_with = "model")]
    pub(crate) recipe: Option<PathBuf>,
    /// Override a key of the recipe, for example `--set serve.port=9000`; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "recipe")]
    pub(crate) sets: Vec<String>,
    /// The run's folder [default: runs/NAME of the recipe]
    #[arg(long, value_name = "DIR", requires = "recipe")]
    pub(crate) out: Option<PathBuf>,
    /// The base: a folder, a GGUF file, or a hub id `owner/name`
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) quantize: QuantizeArgs,
    /// The type to compute in; `auto` is the one that the weights are stored in, and bf16 for GGUF files and quantised weights
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = ["auto", "bf16", "f16", "f32"], conflicts_with = "recipe")]
    pub(crate) dtype: String,
    /// An adapter and the name it is asked for by; may be given more than once
    #[arg(long, value_name = "NAME=DIR", value_parser = named_folder)]
    pub(crate) adapter: Vec<NamedFolder>,
    /// Use adapters even where their taper.json says that they were trained over another base, tokenizer or chat template
    #[arg(long)]
    pub(crate) force: bool,
    /// The base's name in the API; may be given more than once [default: its folder's name or hub id]
    #[arg(long, value_name = "NAME", value_parser = model_name)]
    pub(crate) served_model_name: Vec<String>,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) work: WorkArgs,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Where to listen, and who may ask.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Clients")]
pub(crate) struct ListenArgs {
    /// The address to listen on; any but a loopback address needs API keys [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) host: Option<String>,
    /// The port; 0 takes a free one and prints it [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// A file with API keys, one a line; TAPER_API_KEYS has more, comma-separated
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Listen on an address that others can reach without asking them for a key
    #[arg(long)]
    pub(crate) insecure_no_auth: bool,
    /// A certificate with its chain, in PEM: serve over TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// A name that the server goes by besides those of this machine; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub(crate) allowed_host: Vec<String>,
    /// Web pages that may use the server
    #[arg(
        long,
        value_name = "ORIGIN",
        help = "A web page that may use the server, as https://app.example; may be given more than once"
    )]
    pub(crate) cors_origin: Vec<String>,
    /// Without the page at /
    #[arg(long)]
    pub(crate) no_page: bool,
    /// Let clients load and unload adapters, from the folders in --adapter-root alone
    #[arg(long, requires = "adapter_root")]
    pub(crate) allow_adapter_loading: bool,
    /// The folder whose subfolders clients may load as adapters
    #[arg(long, value_name = "DIR", requires = "allow_adapter_loading")]
    pub(crate) adapter_root: Option<PathBuf>,
}

/// How much is done at a time, and what is told of it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Work")]
pub(crate) struct WorkArgs {
    /// Most requests in the batch [default: 16]
    #[arg(long, value_name = "N")]
    pub(crate) max_batch: Option<usize>,
    /// Most requests that wait for a place in the batch; the next one gets a 429 [default: 64]
    #[arg(long, value_name = "N")]
    pub(crate) max_queue: Option<usize>,
    /// Longest sequence in tokens, answer included [default: the model's own]
    #[arg(long, value_name = "N")]
    pub(crate) max_model_len: Option<usize>,
    /// Memory for keys and values, kept prefixes included [default: 2GiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_memory: Option<String>,
    /// Memory for adapters; those used longest ago make room for others [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) adapter_memory: Option<String>,
    /// Seconds from a request to the end of its answer, at most [default: 600]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) request_timeout: Option<f64>,
    /// Seconds for requests in flight to end once the server is asked to
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    pub(crate) drain_timeout: f64,
    /// What is logged on stderr
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug"])]
    pub(crate) log_level: String,
    /// How it is logged
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub(crate) log_format: String,
    /// Log prompts too: what users write stays out of the log otherwise
    #[arg(long)]
    pub(crate) log_prompts: bool,
}

/// An adapter's folder and the name it is asked for by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NamedFolder {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

fn named_folder(text: &str) -> Result<NamedFolder, String> {
    match text.split_once('=') {
        Some((name, folder)) if taper_serve::is_adapter_name(name) && !folder.is_empty() => {
            Ok(NamedFolder { name: name.to_owned(), folder: folder.into() })
        }
        _ => Err("expected a name of letters, digits, `.`, `_` and `-`, and a folder, as support=runs/support/adapter"
            .to_owned()),
    }
}

fn model_name(text: &str) -> Result<String, String> {
    let sound = taper_serve::is_model_name(text);
    sound.then(|| text.to_owned()).ok_or_else(|| "expected a name without spaces, up to 256 bytes".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=604_800.0).contains(seconds));
    seconds.ok_or_else(|| "expected seconds, 0 to 604800".to_owned())
}
