//! What can be wrong with an adapter, its configuration, or the pair of adapter and model.

use std::io;
use std::path::PathBuf;
use taper_diagnostics::{Diagnose, ExitCode, Location, Problems, list_names};
use taper_hub::safetensors::SafetensorsError;

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Keys or values of a configuration, all that were found.
    #[error("{0}")]
    Problems(Problems),
    /// The disk failed.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk failed.
    #[error("failed to write the adapter to `{}`", folder.display())]
    Write {
        /// The adapter's folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder or file is something else than an adapter in PEFT's format.
    #[error("{what}")]
    NotAnAdapter {
        /// The folder or file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The adapter is not what its configuration, its file's name or the model say.
    #[error("{what}")]
    Misfit {
        /// The file or folder.
        path: PathBuf,
        /// The tensor or key.
        key: Option<String>,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The file is not a sound safetensors file.
    #[error("the adapter's weights cannot be read")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SafetensorsError,
    },
    /// The configuration does not say which modules to adapt, and the model's type has no default.
    #[error("`target_modules` is null and there is no default for the model type {}", model_type.as_deref().map_or("(not given)".to_owned(), |t| format!("`{t}`")))]
    NoDefaultTargets {
        /// The model's type.
        model_type: Option<String>,
    },
    /// A name in the configuration matches nothing in the model.
    #[error("`{key}` names `{given}`, which matches {among}")]
    MatchesNothing {
        /// The key.
        key: &'static str,
        /// The entry, as it was given.
        given: String,
        /// Among what was looked: `no module of the model`, `no adapted module`.
        among: &'static str,
        /// The nearest name, or what there is.
        remedy: String,
    },
    /// Nothing is left to adapt.
    #[error("`target_modules` ({given}) selects no linear layer of the model")]
    NoTargets {
        /// As given.
        given: String,
        /// How many modules the filters took away.
        excluded: usize,
        /// The linear layers that exist.
        available: Vec<String>,
    },
    /// A target is no linear layer.
    #[error("`target_modules` matches `{path}`, which is {what}")]
    NotLinear {
        /// The module.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// Two parts of the configuration want the same module, or the model's sharing forbids it.
    #[error("{what}")]
    Conflict {
        /// The key.
        key: &'static str,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A regular expression that cannot be compiled or run.
    #[error("`{pattern}` is not a usable regular expression: {message}")]
    Pattern {
        /// The key.
        key: &'static str,
        /// As given.
        pattern: String,
        /// What the engine says.
        message: String,
    },
    /// The weights hold tensors that the configuration does not explain.
    #[error("{} of the adapter's tensors belong to no module that its configuration selects: {}", names.len(), list_names(names, 3))]
    UnexpectedTensors {
        /// The file.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// The weights lack tensors that the configuration asks for.
    #[error("{} tensors are missing from the adapter: {}", names.len(), list_names(names, 3))]
    MissingTensors {
        /// The file.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor has another shape than the model and the configuration give it.
    #[error("tensor `{name}` has the shape {given:?}, expected {expected:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// In the file.
        given: Box<[usize]>,
        /// From the model and the configuration.
        expected: Box<[usize]>,
        /// What the difference tells.
        remedy: String,
    },
    /// A tensor is of a type that no adapter has.
    #[error("tensor `{name}` is stored as {given}, expected F32, BF16 or F16")]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// In the file.
        given: String,
    },
    /// A tensor holds NaN or infinity.
    #[error("{count} of the {total} values of tensor `{name}` are NaN or infinite")]
    NotFinite {
        /// The file, when it comes from one.
        path: Option<PathBuf>,
        /// The tensor.
        name: String,
        /// How many.
        count: usize,
        /// Of how many.
        total: usize,
    },
    /// Patterns overlap in an order that cannot be written down.
    #[error(
        "`{path}` would get another rank or scale from `rank_pattern` and `alpha_pattern` once they are saved, which sorts them"
    )]
    Ambiguous {
        /// The module.
        path: String,
    },
    /// The model already has an adapter there.
    #[error("`{path}` has an adapter already")]
    Occupied {
        /// The module.
        path: String,
    },
    /// The arithmetic failed.
    #[error("failed to {doing}")]
    Arithmetic {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: candle_core::Error,
    },
}

/// The result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names what was being done when the arithmetic failed.
pub(crate) fn doing(doing: &'static str) -> impl FnOnce(candle_core::Error) -> Error {
    move |source| Error::Arithmetic { doing, source }
}

impl Diagnose for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotAnAdapter { remedy, .. } | Self::Conflict { remedy, .. } => Some((*remedy).into()),
            Self::Shape { remedy, .. } | Self::MatchesNothing { remedy, .. } | Self::Misfit { remedy, .. } => {
                Some(remedy.clone())
            }
            Self::NoDefaultTargets { .. } => {
                Some("set `target_modules` to \"all-linear\" or to a list of module names".into())
            }
            Self::NoTargets { excluded, available, .. } => Some(match excluded {
                0 => format!("the linear layers are {}", list_names(available, 16)),
                n => format!(
                    "{n} modules were taken away by `exclude_modules`, `layers_to_transform` or `modules_to_save`; the linear layers are {}",
                    list_names(available, 16)
                ),
            }),
            Self::NotLinear { .. } => Some(
                "adapters go on linear layers; name those, or train the module in full through `modules_to_save`"
                    .into(),
            ),
            Self::Pattern { .. } => {
                Some("it is matched against a module's whole path, for example `.*\\.(q_proj|v_proj)`".into())
            }
            Self::UnexpectedTensors { names, .. } => Some(unexpected_hint(names)),
            Self::MissingTensors { .. } => {
                Some("the file is cut, or its adapter_config.json belongs to another adapter or base".into())
            }
            Self::Type { .. } => Some("save the adapter in float32, as PEFT does by default".into()),
            Self::NotFinite { .. } => {
                Some("the training run diverged: take an earlier checkpoint, or train with a lower learning rate".into())
            }
            Self::Occupied { .. } => Some("detach the first adapter".into()),
            Self::Header { source, .. } => source.hint(),
            Self::Ambiguous { .. } => Some("make the patterns disjoint".into()),
            Self::Problems(_) | Self::Read { .. } | Self::Write { .. } | Self::Arithmetic { .. } => None,
        }
    }

    fn location(&self) -> Option<Location> {
        match self {
            Self::Problems(problems) => problems.iter().next()?.location.clone(),
            Self::Read { path, .. } | Self::NotAnAdapter { path, .. } | Self::Header { path, .. } => {
                Some(Location::file(path))
            }
            Self::UnexpectedTensors { path, .. } | Self::MissingTensors { path, .. } => {
                Some(Location::file(path))
            }
            Self::Misfit { path, key, .. } => Some(Location { key: key.clone(), ..Location::file(path) }),
            Self::Shape { path, name, .. } | Self::Type { path, name, .. } => {
                Some(Location::file(path).with_key(name))
            }
            Self::NotFinite { path, name, .. } => {
                Some(path.as_ref().map_or_else(Location::default, Location::file).with_key(name))
            }
            Self::MatchesNothing { key, .. } | Self::Conflict { key, .. } | Self::Pattern { key, .. } => {
                Some(Location::default().with_key(*key))
            }
            Self::NoTargets { .. } | Self::NotLinear { .. } | Self::NoDefaultTargets { .. } => {
                Some(Location::default().with_key("target_modules"))
            }
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Arithmetic { .. } | Self::Occupied { .. } => ExitCode::Fault,
            _ => ExitCode::UserError,
        }
    }
}

/// What the names of surplus tensors give away.
fn unexpected_hint(names: &[String]) -> String {
    let any = |part: &str| names.iter().any(|n| n.contains(part));
    if any("lora_magnitude_vector") {
        "these are DoRA magnitudes: read as plain LoRA the model would be another one".into()
    } else if any("lora_embedding_") {
        "adapters on embeddings are not supported".into()
    } else if any("lora_B.bias") {
        "biases on lora_B (`lora_bias`) are not supported".into()
    } else if any(".base_layer.weight") {
        "PEFT saved the base's own table along; save the adapter again with `save_embedding_layers=False`"
            .into()
    } else if any("token_adapter") {
        "trained tokens (`trainable_token_indices`) are not supported".into()
    } else if names.iter().all(|n| !n.starts_with(crate::PREFIX)) {
        format!("names in PEFT's format begin with `{}`", crate::PREFIX)
    } else {
        "the base is not the one that the adapter was trained on, or adapter_config.json is another adapter's"
            .into()
    }
}
