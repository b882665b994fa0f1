//! What is served, and everything that the handlers share.

use crate::catalogue::{Catalogue, ChatFormat, OwnTemplate, is_adapter_name};
use crate::error::{ApiError, without_paths};
use crate::guard::Guard;
use crate::metrics::Metrics;
use crate::{ApiKeys, Error, Limits};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use taper_infer::{AdapterInfo, GrammarCompiler, GrammarError, Service, ServiceOptions};
use taper_text::{ChatTemplate, Tokenizer};
use tokio::sync::{Semaphore, watch};

/// Requests that are read, rendered and tokenised at a time: the engine needs the processors.
const PREPARATIONS: usize = 4;

/// A base in its service.
pub struct Model {
    /// Its names; the first is the one it is listed by.
    pub names: Vec<String>,
    /// The engine.
    pub service: Service,
    /// How the service was started, for `/metrics`.
    pub options: ServiceOptions,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, when it has one.
    pub template: Option<ChatTemplate>,
    /// Rows of its embedding: ids below it can be asked for.
    pub vocab_size: usize,
    /// Longest sequence in tokens, answer included.
    pub max_model_len: usize,
    /// What is told of it.
    pub facts: ModelFacts,
    /// Reads the chat template that an adapter's folder has of its own.
    pub own_template: Box<OwnTemplate>,
}

/// What Ollama's clients are told of the base.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelFacts {
    /// `llama`, `qwen3` and so on.
    pub family: String,
    /// `135M`, `1.5B`.
    pub parameter_size: String,
    /// `F32`, `Q4_K_M`, `NF4`.
    pub quantization_level: String,
    /// Bytes of its files.
    pub size: u64,
    /// SHA-256 over its files, as hex.
    pub sha256: String,
}

/// How it is served.
#[derive(Debug, Clone, Default)]
pub struct AppOptions {
    /// What requests may ask for.
    pub limits: Limits,
    /// Keys of which a request must bring one.
    pub keys: ApiKeys,
    /// Names that the server goes by besides those of this machine.
    pub allowed_hosts: Vec<String>,
    /// Whether the Host may be any: right where a key is asked for and the server is reached from elsewhere.
    pub any_host: bool,
    /// Pages that may use the server, as `https://app.example`; `*` is any.
    pub cors_origins: Vec<String>,
    /// Whether `/` has the page to try the model with.
    pub page: bool,
    /// Whether clients may load and unload adapters.
    pub allow_adapter_loading: bool,
    /// The folder from which they may.
    pub adapter_root: Option<PathBuf>,
    /// Whether prompts go into the log.
    pub log_prompts: bool,
}

/// The served base, its adapters, and the state of the server. Cheap to share.
pub struct App {
    pub(crate) service: Service,
    pub(crate) service_options: ServiceOptions,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) catalogue: Catalogue,
    pub(crate) vocab_size: usize,
    pub(crate) max_model_len: usize,
    pub(crate) facts: ModelFacts,
    pub(crate) options: AppOptions,
    pub(crate) guard: Guard,
    pub(crate) metrics: Metrics,
    /// Seconds since 1970.
    pub(crate) started: u64,
    pub(crate) preparations: Arc<Semaphore>,
    own_template: Box<OwnTemplate>,
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
    draining: AtomicBool,
    in_flight: AtomicUsize,
    /// True once requests that are still in flight have to end.
    cut: watch::Sender<bool>,
}

impl App {
    /// Make ready to serve a model.
    ///
    /// # Errors
    /// When the adapters' root is no folder.
    pub fn new(model: Model, mut options: AppOptions) -> Result<Arc<Self>, Error> {
        if let Some(root) = &mut options.adapter_root {
            *root = fs_err::canonicalize(&*root).map_err(Error::Io)?;
        }
        let format = model.template.map(|template| ChatFormat::new(template, &model.tokenizer));
        let guard = Guard {
            hosts: options.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            any_host: options.any_host,
            origins: options.cors_origins.iter().map(|o| o.trim_end_matches('/').to_owned()).collect(),
        };
        let max_model_len = model.max_model_len.min(model.service.longest_sequence());
        let metrics = Metrics::new(&model.service, &model.options, &options);
        Ok(Arc::new(Self {
            service: model.service,
            service_options: model.options,
            tokenizer: model.tokenizer,
            catalogue: Catalogue::new(model.names, format),
            vocab_size: model.vocab_size,
            max_model_len,
            facts: model.facts,
            guard,
            metrics,
            options,
            started: unix_seconds(),
            preparations: Arc::new(Semaphore::new(PREPARATIONS)),
            own_template: model.own_template,
            grammars: OnceLock::new(),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            cut: watch::Sender::new(false),
        }))
    }

    /// Serve the adapter in `folder` as `name`; blocks while it is read. With `replace` one of that name gives way.
    ///
    /// # Errors
    /// When the name is none for an adapter or is taken, or the adapter cannot be used over this base.
    pub fn add_adapter(&self, name: &str, folder: &Path, replace: bool) -> Result<AdapterInfo, Error> {
        let bad_name = |why: String| Error::AdapterName { name: name.to_owned(), why };
        if !is_adapter_name(name) {
            return Err(bad_name("it has other characters than an adapter's name may".into()));
        }
        if let Some(why) = self.catalogue.clashes(name) {
            return Err(bad_name(why));
        }
        let refused = |why: String| Error::Adapter { name: name.to_owned(), why };
        let template = (self.own_template)(folder).map_err(refused)?;
        let info = self.service.adapters().add(name, folder, replace).map_err(|e| refused(e.to_string()))?;
        let format = template.map(|template| ChatFormat::new(template, &self.tokenizer));
        self.catalogue.set_format(name, format);
        Ok(info)
    }

    /// Serve an adapter no more.
    pub(crate) fn remove_adapter(&self, name: &str) -> Result<(), ApiError> {
        self.service.adapters().remove(name)?;
        self.catalogue.set_format(name, None);
        self.metrics.forget_adapter(name);
        Ok(())
    }

    /// What prepares the forms of answers; made when it is first asked for.
    pub(crate) fn grammars(&self) -> Result<&GrammarCompiler, ApiError> {
        let made = self.grammars.get_or_init(|| GrammarCompiler::new(&self.tokenizer, self.vocab_size));
        made.as_ref().map_err(|error| ApiError::of_grammar(error, "response_format"))
    }

    /// The names that can be asked for, the base's first.
    pub fn model_names(&self) -> Vec<String> {
        let adapters = self.service.adapters().list().into_iter().map(|info| info.name);
        self.catalogue.base.iter().cloned().chain(adapters).collect()
    }

    /// Run what would hold up the connections on a thread of its own; few at a time.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = self.preparations.clone().acquire_owned().await.map_err(|_| ApiError::draining())?;
        let app = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            // Who waits may have gone; the work is done all the same, and holds its place until then.
            let _permit = permit;
            work(&app)
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(panicked = error.is_panic(), "a request could not be prepared");
            Err(ApiError::internal())
        })
    }

    /// Whether requests are still taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Take no more requests.
    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// End the requests that are in flight.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Hears when requests in flight have to end.
    pub(crate) fn until_cut(&self) -> watch::Receiver<bool> {
        self.cut.subscribe()
    }

    /// Requests whose answers have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// A request begins; it ends with what this gives.
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight { app: self.clone() }
    }

    /// When a request that comes now has to end.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.options.limits.request_timeout
    }
}

/// A request in flight.
pub(crate) struct InFlight {
    app: Arc<App>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.app.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::AdapterName { .. } => Self::invalid("lora_name", error.to_string()),
            other => Self::malformed(without_paths(&other.to_string())),
        }
    }
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
