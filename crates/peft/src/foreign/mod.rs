//! Adapters that others wrote, turned into PEFT's names, shapes and configuration before the normal way of loading.
//!
//! | layout | factors | scale |
//! | --- | --- | --- |
//! | PEFT | `….lora_A.weight` `[r, in]`, `….lora_B.weight` `[out, r]` | `lora_alpha / r` |
//! | mlx-lm | `….lora_a` `[in, r]`, `….lora_b` `[r, out]` | `scale` itself |
//! | torchtune | `layers.N.attn.q_proj.lora_a.weight` `[r, in]`, `….lora_b.weight` `[out, r]` | `lora_alpha / r` |
//!
//! Sources: PEFT 0.21 `save_and_load.py`; mlx-lm `tuner/{lora,dora,utils}.py`; torchtune `models/convert_weights.py`.

mod config;
pub(crate) mod folder;
pub(crate) mod misfit;
mod mlx;
mod names;
mod torchtune;

use crate::{AdapterWeights, Error, Result, WEIGHTS_FILE};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use taper_hub::safetensors::Header;

pub use names::NameChange;
pub use torchtune::HeadLayout;
pub(crate) use {config::peft_text, mlx::MLX_WEIGHTS, names::parameter_of};

/// In whose names and shapes a file was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// PEFT's own.
    #[default]
    Peft,
    /// mlx-lm: transposed factors, a scale in place of alpha.
    Mlx,
    /// torchtune's native names; rows of query and key in the order of an interleaved rotary embedding.
    Torchtune,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peft => "PEFT",
            Self::Mlx => "mlx-lm",
            Self::Torchtune => "torchtune",
        })
    }
}

/// The weights of an adapter as they were found, and what was done to bring them into PEFT's layout.
#[derive(Debug, Clone)]
pub struct AdapterFile {
    /// The file.
    pub path: PathBuf,
    /// In which layout it is.
    pub layout: Layout,
    /// What was unusual in its names.
    pub changes: Vec<NameChange>,
    /// Under PEFT's names, in PEFT's shapes; rows of query and key are still torchtune's where the layout is.
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl AdapterFile {
    /// Read the weights in an adapter's folder: `adapter_model.safetensors` or mlx-lm's `adapters.safetensors`.
    ///
    /// # Errors
    /// When there is none, it is something else (a git-lfs pointer, a pickle), is broken, holds NaN, or mixes layouts.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = weights_path(folder)?;
        let found = crate::files::read_tensors(&path)?;
        translate(path, found)
    }

    /// The tensors, rows of query and key in the order of Hugging Face's checkpoints.
    ///
    /// `heads` tells how torchtune orders them for the base; other layouts do not ask.
    ///
    /// # Errors
    /// When they are torchtune's, and `heads` is unknown or does not fit them.
    pub fn into_weights(mut self, heads: Option<HeadLayout>) -> Result<AdapterWeights> {
        if self.layout == Layout::Torchtune {
            torchtune::reorder_rows(&self.path, &mut self.tensors, heads)?;
        }
        Ok(AdapterWeights { tensors: self.tensors })
    }
}

/// The weights' file in a folder.
fn weights_path(folder: &Path) -> Result<PathBuf> {
    let candidates = [WEIGHTS_FILE, MLX_WEIGHTS].map(|name| folder.join(name));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| folder::absent(folder))
}

/// Bring tensors into PEFT's names and shapes, whatever names they have.
pub(crate) fn translate(path: PathBuf, found: BTreeMap<String, Tensor>) -> Result<AdapterFile> {
    let layout = layout_of(&path, found.keys().map(String::as_str))?;
    let (tensors, changes) = match layout {
        Layout::Peft => names::to_peft(&path, found)?,
        Layout::Mlx => (mlx::to_peft(&path, found)?, Vec::new()),
        Layout::Torchtune => (torchtune::to_peft(&path, found)?, Vec::new()),
    };
    Ok(AdapterFile { path, layout, changes, tensors })
}

/// The layout that all names agree on.
fn layout_of<'a>(path: &Path, names: impl Iterator<Item = &'a str> + Clone) -> Result<Layout> {
    let of = |name: &str| {
        if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
            Some(Layout::Mlx)
        } else if name.ends_with(".lora_a.weight") || name.ends_with(".lora_b.weight") {
            Some(Layout::Torchtune)
        } else if names::parameter_of(name).is_some() || name.starts_with(crate::PREFIX) {
            Some(Layout::Peft)
        } else {
            // `….m`, `….magnitude`, whole weights: the others decide.
            None
        }
    };
    let is_mlx_file = path.file_name().is_some_and(|name| name == MLX_WEIGHTS);
    let mut decided: Option<(Layout, &str)> = None;
    for name in names.clone() {
        match (of(name), decided) {
            (Some(layout), None) => decided = Some((layout, name)),
            (Some(layout), Some((first, other))) if layout != first => {
                return Err(Error::Misfit {
                    path: path.to_owned(),
                    key: Some(name.to_owned()),
                    what: format!(
                        "`{other}` is named as {first} names its tensors, `{name}` as {layout} does"
                    ),
                    remedy: format!(
                        "an adapter's file has one layout: names in PEFT's begin with `{}`",
                        crate::PREFIX
                    ),
                });
            }
            _ => {}
        }
    }
    match decided {
        Some((layout, _)) => Ok(layout),
        None if is_mlx_file => Err(mlx::no_factors(path, names.count())),
        None => Ok(Layout::Peft),
    }
}

/// The names and shapes in a file, without its values.
fn header(path: &Path) -> Result<Header> {
    let bytes = fs_err::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Header::parse(&bytes).map_err(|source| Error::Header { path: path.to_owned(), source })
}
