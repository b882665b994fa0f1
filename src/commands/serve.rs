//! `taper serve`: a base and its adapters over HTTP.

use super::eval::folder_of_trained;
use crate::cli::{CommonArgs, FolderArgs, ListenArgs, RecipeArgs, ServeArgs, WorkArgs};
use crate::contract::{self, TEMPLATE_FILE};
use crate::device;
use crate::fault::{OrFault, user_error};
use crate::output::{print, say};
use crate::workspace::{Base, model_section, resolve, run_folder};
use candle_core::DType;
use serde_json::json;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use taper_diagnostics::{ExitCode, Location, Problems};
use taper_hub::{HashCache, ModelSection, ModelSource};
use taper_infer::{AdapterPoolOptions, EngineOptions, Service, ServiceOptions, longest_sequence};
use taper_models::{CausalLm, LoadOptions};
use taper_serve::{
    API_KEYS_VARIABLE, ApiKeys, App, AppOptions, Drained, Limits, Model, ModelFacts, ServeSection, Server,
    ServerOptions, Shutdown, TlsFiles, parse_bytes,
};
use taper_text::ChatTemplate;
use taper_train::TrainMethod;

/// Adapters that can be known at a time; they need not all be in memory.
const MOST_ADAPTERS: usize = 4096;

/// Tokens of a pass while prompts are read: texts that are being written wait for it, and more of them make a pass no more efficient.
const TOKENS_PER_PASS: usize = 256;

/// What is served: by flags or by a recipe.
struct Chosen {
    base: Base,
    load: LoadOptions,
    quantize: Option<String>,
    names: Vec<String>,
    adapters: Vec<(String, PathBuf)>,
    section: ServeSection,
}

pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    device::check(&args.common)?;
    log_to_stderr(&args.work);
    let chosen = chosen(args)?;
    let keys = std::env::var(API_KEYS_VARIABLE).ok();
    let keys = ApiKeys::read(args.listen.api_key_file.as_deref(), keys.as_deref()).or_fault()?;
    // Before the weights are loaded: a port that is taken is told at once.
    let server = Server::bind(&server_options(args, &chosen.section, &keys)?).or_fault()?;
    let options = app_options(&args.listen, &args.work, &chosen.section, keys, server.local_addr())?;
    let (adapters, common) = (chosen.adapters.clone(), &args.common);
    let app = App::new(model(chosen, args.force)?, options).or_fault()?;
    for (name, folder) in &adapters {
        let info = app.add_adapter(name, folder, false).or_fault()?;
        say(&format!("adapter {name}: {} of {}", info.peft_type, folder.display()));
    }
    tell(&server, &app, common)?;
    match server.run(app, &Shutdown::default(), true).or_fault()? {
        Drained::Whole => say("ended; every request that was taken has its answer"),
        Drained::Cut { requests } => say(&format!("ended; {requests} requests were cut off")),
    }
    Ok(ExitCode::Passed)
}

/// A server of our own on the loopback, for as long as it is held.
pub(crate) struct LocalServer {
    pub(crate) url: String,
    /// The model to ask for.
    pub(crate) model: String,
    shutdown: Shutdown,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LocalServer {
    /// Serve a base as `taper serve` would, perhaps with one adapter, `concurrency` texts at a time.
    pub(crate) fn start(
        base: Base,
        section: &ModelSection,
        adapter: Option<&Path>,
        concurrency: usize,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let drain_timeout = Duration::from_secs(1);
        let options =
            ServerOptions { address, tls: None, has_keys: false, insecure_no_auth: false, drain_timeout };
        let server = Server::bind(&options).or_fault()?;
        let url = format!("{}://{}/v1", server.scheme(), server.local_addr());
        let load = load_options(section, &base);
        let (quantize, serving) =
            (quantised(section), ServeSection { max_batch: concurrency, ..ServeSection::default() });
        let names = vec!["base".to_owned()];
        let chosen = Chosen { base, load, quantize, names, adapters: Vec::new(), section: serving };
        let app = App::new(self::model(chosen, false)?, AppOptions::default()).or_fault()?;
        let mut model = "base".to_owned();
        if let Some(folder) = adapter {
            "adapter".clone_into(&mut model);
            app.add_adapter(&model, folder, false).or_fault()?;
        }
        let shutdown = Shutdown::default();
        let ask = shutdown.clone();
        let thread = std::thread::spawn(move || {
            if let Err(error) = server.run(app, &ask, false) {
                say(&format!("warning: the server of an evaluation ended: {error}"));
            }
        });
        Ok(Self { url, model, shutdown, thread: Some(thread) })
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.shutdown.ask();
        // Its model is let go of before the next one is loaded.
        if let Some(Err(_)) = self.thread.take().map(std::thread::JoinHandle::join) {
            say("warning: the server of an evaluation ended with a fault");
        }
    }
}

fn chosen(args: &ServeArgs) -> anyhow::Result<Chosen> {
    let mut chosen = match (&args.recipe, &args.model) {
        (Some(recipe), _) => of_recipe(args, recipe)?,
        (None, Some(model)) => of_model(args, model)?,
        (None, None) => {
            return Err(user_error("nothing to serve", "name a recipe, or a base with `--model`"));
        }
    };
    overlay(&mut chosen.section, args)?;
    chosen.adapters.extend(chosen.section.adapters.clone());
    chosen.adapters.extend(args.adapter.iter().map(|one| (one.name.clone(), one.folder.clone())));
    match (args.served_model_name.as_slice(), &chosen.section.served_model_name) {
        ([], Some(name)) => chosen.names = vec![name.clone()],
        ([], None) => {}
        (names, _) => chosen.names = names.to_vec(),
    }
    Ok(chosen)
}

fn of_model(args: &ServeArgs, name: &str) -> anyhow::Result<Chosen> {
    let section = model_section(&args.quantize, name, &args.dtype)?;
    let base = Base::of_name(&section, &args.common)?;
    Ok(Chosen {
        names: vec![base_name(&base.source)],
        load: load_options(&section, &base),
        quantize: quantised(&section),
        adapters: Vec::new(),
        section: ServeSection::default(),
        base,
    })
}

fn of_recipe(args: &ServeArgs, recipe: &Path) -> anyhow::Result<Chosen> {
    if args.quantize.quantize.is_some() {
        return Err(user_error(
            "`--quantize` is for `--model`: a recipe says itself how its base is held",
            "say `--set model.quantize=...`, which is what the adapter would be trained over too",
        ));
    }
    let recipe_args =
        RecipeArgs { recipe: recipe.to_owned(), sets: args.sets.clone(), common: args.common.clone() };
    let run = resolve(&recipe_args)?;
    let folder = run_folder(&FolderArgs { recipe: recipe_args, out: args.out.clone() }, &run);
    let section = &run.recipe.model;
    let is_full = run.recipe.train.method == TrainMethod::Full;
    let trained = folder_of_trained(&folder, is_full, &format!("taper train {}", recipe.display()))?;
    let base = match is_full {
        true => Base::of_trained(&trained, section, &args.common)?,
        false => Base::of_recipe(section, &args.common)?,
    };
    let names = vec![if is_full { run.name.clone() } else { base_name(&base.source) }];
    let adapters = if is_full { Vec::new() } else { vec![(adapter_name(&run.name)?, trained)] };
    Ok(Chosen {
        names,
        load: load_options(section, &base),
        quantize: quantised(section),
        adapters,
        section: run.recipe.serve.clone(),
        base,
    })
}

/// How the weights are held: as the section says. Where it leaves the type open, quantised weights compute in bf16, which is several times as
/// fast in small batches as f32 and rounds less than the weights were.
fn load_options(section: &ModelSection, base: &Base) -> LoadOptions {
    let options = LoadOptions::from(section);
    let quantised = base.files.gguf.is_some() || section.quantize.is_some();
    let narrow = options.dtype.is_none() && quantised;
    LoadOptions { dtype: if narrow { Some(DType::BF16) } else { options.dtype }, ..options }
}

/// The name of a run as that of an adapter.
fn adapter_name(run: &str) -> anyhow::Result<String> {
    if taper_serve::is_adapter_name(run) {
        return Ok(run.to_owned());
    }
    Err(user_error(
        format!("the recipe is named `{run}`, which no client could ask for"),
        "use letters, digits, `.`, `_` and `-` in its `name`, or say `--model BASE --adapter NAME=DIR`",
    ))
}

/// The base's name where none is given: its folder's or file's, or its hub id.
fn base_name(source: &ModelSource) -> String {
    let last = |path: &Path, name: fn(&Path) -> Option<&std::ffi::OsStr>| {
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = name(&whole).unwrap_or_default().to_string_lossy().into_owned();
        if taper_serve::is_model_name(&name) { name } else { "base".to_owned() }
    };
    match source {
        ModelSource::Folder(path) => last(path, Path::file_name),
        ModelSource::Gguf(path) => last(path, Path::file_stem),
        hub => hub.to_string(),
    }
}

fn quantised(section: &ModelSection) -> Option<String> {
    Some(serde_json::to_value(section.quantize?).ok()?.as_str()?.to_owned())
}

/// Flags win over the section; what is out of range is told by its flag.
fn overlay(section: &mut ServeSection, args: &ServeArgs) -> anyhow::Result<()> {
    let (listen, work) = (&args.listen, &args.work);
    let set = |to: &mut usize, from: Option<usize>| *to = from.unwrap_or(*to);
    if let Some(host) = &listen.host {
        section.host.clone_from(host);
    }
    section.port = listen.port.unwrap_or(section.port);
    set(&mut section.max_batch, work.max_batch);
    set(&mut section.max_queue, work.max_queue);
    section.max_model_len = work.max_model_len.or(section.max_model_len);
    for (to, from) in
        [(&mut section.cache_memory, &work.cache_memory), (&mut section.adapter_memory, &work.adapter_memory)]
    {
        if let Some(from) = from {
            to.clone_from(from);
        }
    }
    section.request_timeout = work.request_timeout.unwrap_or(section.request_timeout);
    let mut problems = Problems::new();
    for problem in section.check().iter() {
        let key = problem.location.as_ref().and_then(|location| location.key.clone()).unwrap_or_default();
        let flag = format!("--{}", key.replace('_', "-"));
        problems.push(problem.clone().at(Location::default().with_key(flag)));
    }
    problems.into_result().or_fault().map(drop)
}

fn server_options(args: &ServeArgs, section: &ServeSection, keys: &ApiKeys) -> anyhow::Result<ServerOptions> {
    let listen = &args.listen;
    let ip = match section.host.as_str() {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.parse()?,
    };
    let tls = match (&listen.tls_cert, &listen.tls_key) {
        (Some(cert), Some(key)) => Some(TlsFiles { cert: cert.clone(), key: key.clone() }),
        _ => None,
    };
    Ok(ServerOptions {
        address: SocketAddr::new(ip, section.port),
        tls,
        has_keys: !keys.is_empty(),
        insecure_no_auth: listen.insecure_no_auth,
        drain_timeout: Duration::from_secs_f64(args.work.drain_timeout),
    })
}

fn app_options(
    listen: &ListenArgs,
    work: &WorkArgs,
    section: &ServeSection,
    keys: ApiKeys,
    address: SocketAddr,
) -> anyhow::Result<AppOptions> {
    for origin in &listen.cors_origin {
        let sound = origin == "*" || origin.split_once("://").is_some_and(|(_, host)| !host.is_empty());
        if !sound {
            return Err(user_error(
                format!("`--cors-origin {origin}` is no origin"),
                "write the scheme and the host, as https://app.example",
            ));
        }
    }
    Ok(AppOptions {
        limits: Limits {
            request_timeout: Duration::from_secs_f64(section.request_timeout),
            ..Limits::default()
        },
        any_host: !keys.is_empty() && !address.ip().is_loopback(),
        keys,
        allowed_hosts: listen.allowed_host.clone(),
        cors_origins: listen.cors_origin.clone(),
        page: !listen.no_page,
        allow_adapter_loading: listen.allow_adapter_loading,
        adapter_root: listen.adapter_root.clone(),
        log_prompts: work.log_prompts,
    })
}

/// Load the base and start its engine.
fn model(chosen: Chosen, force: bool) -> anyhow::Result<Model> {
    let Chosen { base, load, quantize, names, section, .. } = chosen;
    let model = base.load(load)?;
    let config = model.config();
    let own = longest_sequence(config);
    let max_model_len = section.max_model_len.unwrap_or(own);
    if max_model_len > own {
        return Err(user_error(
            format!("the longest sequence is set to {max_model_len} tokens, and this model's is {own}"),
            "leave `--max-model-len` (`serve.max_model_len`) out, or set it to less",
        ));
    }
    let bytes = |text: &str| parse_bytes(text).map_err(anyhow::Error::msg);
    let options = ServiceOptions {
        engine: EngineOptions { batch_size: section.max_batch, tokens_per_pass: TOKENS_PER_PASS },
        max_waiting: section.max_queue,
        cache_bytes: bytes(&section.cache_memory)?,
        adapters: AdapterPoolOptions {
            max_bytes: bytes(&section.adapter_memory)?,
            max_adapters: MOST_ADAPTERS,
        },
    };
    let facts = facts(&base, model.as_ref(), quantize)?;
    let (vocab_size, tokenizer, template) =
        (config.vocab_size, base.tokenizer.clone(), base.template.clone());
    let base = Arc::new(base);
    let held = base.clone();
    let admission = Box::new(move |folder: &Path| {
        let told = |error: anyhow::Error| format!("{error:#}").trim_start_matches("error: ").to_owned();
        contract::hold(folder, &held, force).map_err(told)
    });
    let service = Service::start(model, tokenizer.clone(), options, admission).or_fault()?;
    let own_template = Box::new(move |folder: &Path| own_template(folder, &base));
    Ok(Model { names, service, options, tokenizer, template, vocab_size, max_model_len, facts, own_template })
}

/// The chat template beside an adapter.
fn own_template(folder: &Path, base: &Base) -> Result<Option<ChatTemplate>, String> {
    let path = folder.join(TEMPLATE_FILE);
    let template = path.is_file().then(|| ChatTemplate::from_file(&path, &base.tokenizer));
    template.transpose().map_err(|error| error.to_string())
}

fn facts(base: &Base, model: &dyn CausalLm, quantize: Option<String>) -> anyhow::Result<ModelFacts> {
    let config = model.config();
    let sizes = base.files.weight_files().iter().map(|path| Ok(fs_err::metadata(path)?.len()));
    let hashes = HashCache::from_env();
    Ok(ModelFacts {
        family: config.model_type.name().to_owned(),
        parameter_size: in_short(config.parameters()),
        quantization_level: quantize.unwrap_or_else(|| "unknown".to_owned()),
        size: sizes.sum::<anyhow::Result<u64>>()?,
        sha256: base.files.fingerprint_with(hashes.as_ref()).or_fault()?.as_str().to_owned(),
    })
}

/// `1.5B`, `135M`, `12K`.
fn in_short(count: u64) -> String {
    let of = |unit: f64, letter: &str| {
        let value = count as f64 / unit;
        if value < 10.0 { format!("{value:.1}{letter}") } else { format!("{value:.0}{letter}") }
    };
    match count {
        1_000_000_000.. => of(1e9, "B"),
        1_000_000.. => of(1e6, "M"),
        _ => of(1e3, "K"),
    }
}

/// Where it is, what can be asked, and how.
fn tell(server: &Server, app: &App, common: &CommonArgs) -> anyhow::Result<()> {
    let url = format!("{}://{}", server.scheme(), server.local_addr());
    let models = app.model_names();
    let last = models.last().cloned().unwrap_or_default();
    say(&format!("serving {} at {url}", models.join(", ")));
    say(&format!(
        "try: curl {url}/v1/chat/completions -d '{{\"model\": \"{last}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'"
    ));
    if std::io::stderr().is_terminal() {
        say("Ctrl-C ends it");
    }
    if common.json {
        print(&json!({ "url": url, "models": models }).to_string())?;
    }
    Ok(())
}

/// The log goes to stderr; the first time counts.
fn log_to_stderr(work: &WorkArgs) {
    use tracing_subscriber::filter::LevelFilter;
    let level = match work.log_level.as_str() {
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "debug" => LevelFilter::DEBUG,
        _ => LevelFilter::INFO,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    let _ = match work.log_format.as_str() {
        "json" => log.json().flatten_event(true).try_init(),
        _ => log.with_target(false).try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::in_short;

    #[test]
    fn counts_are_told_in_short() {
        assert_eq!(
            [in_short(134_515_008), in_short(1_543_714_304), in_short(25_000)],
            ["135M", "1.5B", "25K"]
        );
    }
}
