//! `adapter_model.safetensors` and `adapter_config.json`, as PEFT writes and reads them.

use crate::attach::{Values, apply};
use crate::error::doing;
use crate::foreign::folder::absent;
use crate::foreign::{AdapterFile, HeadLayout, misfit};
use crate::modules::{TrainedParameter, inventory};
use crate::plan::{Author, Plan, plan};
use crate::sizes::Sizes;
use crate::{Adapter, AdapterConfig, Error, InitLoraWeights, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use taper_diagnostics::write_bytes_atomically;
use taper_hub::safetensors::{Dtype as FileDtype, Header, TensorInfo};
use taper_nn::{VisitModules, to_device, to_vec_f32};

/// The configuration's file name.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The weights' file name.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What a loaded adapter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadMode {
    /// Plain tensors: no graph is kept.
    Inference,
    /// Variables: training goes on.
    Training,
}

/// The tensors of an adapter's file, f32, by name.
#[derive(Debug, Clone, Default)]
pub struct AdapterWeights {
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl AdapterWeights {
    /// Tensors by the names they get in a file.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors }
    }

    /// Read the weights in an adapter's folder, PEFT's or mlx-lm's, under PEFT's names and in its shapes; f16 and bf16 are widened.
    ///
    /// # Errors
    /// When the file is missing, is something else (a git-lfs pointer, a pickle), is broken, holds NaN, or is torchtune's with an
    /// order of rows that only the base tells (see [`AdapterFile::into_weights`]).
    pub fn read(folder: &Path) -> Result<Self> {
        AdapterFile::read(folder)?.into_weights(None)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The file's bytes: f32, sorted by name, with the metadata that PEFT writes. The same tensors give the same bytes.
    ///
    /// # Errors
    /// When a tensor holds NaN or infinity: such a file would be refused by its reader.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut data: Vec<(&str, Vec<usize>, Vec<u8>)> = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            check_finite(None, name, tensor)?;
            let values = to_vec_f32(tensor).map_err(doing("read the adapter's values"))?;
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            data.push((name, tensor.dims().to_vec(), bytes));
        }
        let invalid = |source: safetensors::SafeTensorError| Error::Arithmetic {
            doing: "lay out the adapter's file",
            source: source.into(),
        };
        let views: Vec<(&str, TensorView<'_>)> = data
            .iter()
            .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<_, safetensors::SafeTensorError>>()
            .map_err(invalid)?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(views, Some(metadata)).map_err(invalid)
    }
}

/// Put an adapter that is at hand on `model`, as [`load`] does one from a folder.
///
/// # Errors
/// When it does not fit the model; the model is then as it was.
pub fn load_parts(
    config: &AdapterConfig,
    weights: AdapterWeights,
    model: &mut dyn VisitModules,
    mode: LoadMode,
) -> Result<Adapter> {
    put_on(config, weights, Path::new(WEIGHTS_FILE), model, mode)
}

impl Adapter {
    /// Write the adapter to `folder` as PEFT would: both files whole, or as they were (invariant 9). One whose beginning was taken off the base
    /// (PiSSA, OLoRA, LoftQ) is written as plain LoRA of twice the rank over the base as it was: `B A - B0 A0 = [B, -B0] [A; A0]`.
    ///
    /// # Errors
    /// When the disk fails, a value is not finite, or the patterns mean something else once they are sorted.
    pub fn save(&self, folder: &Path) -> Result<()> {
        if self.beginnings.is_empty() {
            return self.save_state(folder);
        }
        let (config, weights) = self.over_the_base()?;
        write_files(folder, &config, &weights)
    }

    /// The same without that conversion, for training to go on from.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_state(&self, folder: &Path) -> Result<()> {
        let config = AdapterConfig { inference_mode: true, ..self.config.clone() };
        self.patterns_survive_sorting(&config)?;
        write_files(folder, &config, &self.weights())
    }

    /// Whether its tensors are meant over other weights than the base's files hold (PiSSA, OLoRA, LoftQ), until [`Self::save`] converts them.
    pub fn has_beginning(&self) -> bool {
        !self.beginnings.is_empty()
    }

    fn over_the_base(&self) -> Result<(AdapterConfig, AdapterWeights)> {
        let mut weights = self.weights();
        for (path, (a0, b0)) in &self.beginnings {
            let names = ["lora_A", "lora_B"].map(|name| format!("{}{path}.{name}.weight", crate::PREFIX));
            let joined = || -> candle_core::Result<[Tensor; 2]> {
                let there = |name: &String| to_device(&weights.tensors[name], &Device::Cpu);
                let (a, b) = (&there(&names[0])?, &there(&names[1])?);
                Ok([Tensor::cat(&[a, a0], 0)?.contiguous()?, Tensor::cat(&[b, &b0.neg()?], 1)?.contiguous()?])
            };
            let joined = joined().map_err(doing("join an adapter and its beginning"))?;
            names
                .into_iter()
                .zip(joined)
                .for_each(|(name, tensor)| drop(weights.tensors.insert(name, tensor)));
        }
        // Twice the rank under the same scale.
        let factor = if self.config.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        let config = AdapterConfig {
            inference_mode: true,
            init_lora_weights: InitLoraWeights::Default,
            r: 2 * self.config.r,
            lora_alpha: factor * self.config.lora_alpha,
            rank_pattern: self.config.rank_pattern.iter().map(|(k, r)| (k.clone(), 2 * r)).collect(),
            alpha_pattern: self.config.alpha_pattern.iter().map(|(k, a)| (k.clone(), factor * a)).collect(),
            ..self.config.clone()
        };
        self.patterns_survive_sorting(&self.config)?;
        Ok((config, weights))
    }

    /// The first matching pattern counts and files have their keys sorted, so an order that matters cannot be saved.
    fn patterns_survive_sorting(&self, config: &AdapterConfig) -> Result<()> {
        let mut sorted = config.clone();
        sorted.rank_pattern.sort_by(|a, b| a.0.cmp(&b.0));
        sorted.alpha_pattern.sort_by(|a, b| a.0.cmp(&b.0));
        if sorted == *config {
            return Ok(());
        }
        let sizes = Sizes::new(&sorted)?;
        for layer in &self.layers {
            if sizes.rank_of(&layer.path)? != layer.rank || sizes.scale_of(&layer.path)? != layer.scale {
                return Err(Error::Ambiguous { path: layer.path.clone() });
            }
        }
        Ok(())
    }
}

/// Write an adapter's two files to `folder`, each whole, or as it was.
///
/// # Errors
/// When the disk fails or a value is not finite.
pub fn write_files(folder: &Path, config: &AdapterConfig, weights: &AdapterWeights) -> Result<()> {
    let bytes = weights.to_bytes()?;
    let named = |source| Error::Write { folder: folder.to_owned(), source };
    write_bytes_atomically(&folder.join(WEIGHTS_FILE), &bytes).map_err(named)?;
    write_bytes_atomically(&folder.join(CONFIG_FILE), config.to_json().as_bytes()).map_err(named)
}

/// Put the adapter in `folder` on `model`. Every tensor of the file is used, and none is missing.
///
/// # Errors
/// When the files are not a sound LoRA adapter, or it does not fit the model; the model is then as it was.
pub fn load(folder: &Path, model: &mut dyn VisitModules, mode: LoadMode) -> Result<Adapter> {
    load_for(folder, model, mode, None)
}

/// [`load`] for a base of which it is known how torchtune orders the rows of query and key.
///
/// # Errors
/// As [`load`].
pub fn load_for(
    folder: &Path,
    model: &mut dyn VisitModules,
    mode: LoadMode,
    heads: Option<HeadLayout>,
) -> Result<Adapter> {
    let (config, weights, path) = parts(folder, heads)?;
    put_on(&config, weights, &path, model, mode)
}

/// The configuration and the tensors in an adapter's folder, whoever wrote it, in PEFT's names and shapes.
///
/// # Errors
/// When the files are not a sound adapter.
pub fn read_parts(folder: &Path, heads: Option<HeadLayout>) -> Result<(AdapterConfig, AdapterWeights)> {
    parts(folder, heads).map(|(config, weights, _)| (config, weights))
}

fn parts(folder: &Path, heads: Option<HeadLayout>) -> Result<(AdapterConfig, AdapterWeights, PathBuf)> {
    if !folder.is_dir() {
        return Err(absent(folder));
    }
    let config = match AdapterConfig::read(folder) {
        // What the weights' file is says more than a missing configuration.
        Err(Error::NotAnAdapter { path, what, remedy }) => {
            return Err(match AdapterFile::read(folder) {
                Err(error @ (Error::Misfit { .. } | Error::NotAnAdapter { .. })) => error,
                _ => Error::NotAnAdapter { path, what, remedy },
            });
        }
        other => other?,
    };
    let file = AdapterFile::read(folder)?;
    let path = file.path.clone();
    Ok((config, file.into_weights(heads)?, path))
}

/// Put an adapter of these parts on `model`; `path` is where its tensors are from.
fn put_on(
    config: &AdapterConfig,
    weights: AdapterWeights,
    path: &Path,
    model: &mut dyn VisitModules,
    mode: LoadMode,
) -> Result<Adapter> {
    let modules = inventory(model)?;
    let paths = modules.iter().map(|m| m.path.as_str()).collect();
    let plan = plan(config, &modules, None, Author::File).map_err(|error| match error {
        // Where the base has none of the modules, their names say more than the targets.
        Error::NoTargets { .. } => {
            let names: Vec<String> = weights.tensors.keys().cloned().collect();
            let base = config.base_model_name_or_path.as_deref();
            misfit::no_module(path, &names, &paths, base).unwrap_or(error)
        }
        other => other,
    })?;
    fits(&plan, &weights, path, &paths)?;
    apply(model, &plan, Values::Read(weights.tensors), mode)
}

/// Every tensor is expected, every expected tensor is there, and the shapes agree.
fn fits(plan: &Plan, weights: &AdapterWeights, path: &Path, paths: &BTreeSet<&str>) -> Result<()> {
    let base = plan.config.base_model_name_or_path.as_deref();
    let slots: BTreeMap<&str, &TrainedParameter> = plan.slots().map(|s| (s.name.as_str(), s)).collect();
    let optional = plan.optional();
    let known = |name: &str| slots.contains_key(name) || optional.iter().any(|slot| slot.name == name);
    let names: Vec<String> = weights.tensors.keys().filter(|n| !known(n)).cloned().collect();
    if !names.is_empty() {
        return Err(misfit::other_method(path, &names, plan.config.method.as_dyn().peft_type())
            .or_else(|| misfit::no_module(path, &names, paths, base))
            .unwrap_or_else(|| Error::UnexpectedTensors { path: path.to_owned(), names }));
    }
    let names: Vec<String> =
        plan.slots().map(|s| s.name.clone()).filter(|n| weights.get(n).is_none()).collect();
    if !names.is_empty() {
        return Err(Error::MissingTensors { path: path.to_owned(), names });
    }
    let slots = plan.slots().chain(&optional).map(|s| (s.name.as_str(), s)).collect();
    let misfit = misfit::unexplained_ranks(path, &slots, weights, plan.config.r)
        .or_else(|| misfit::other_widths(path, &slots, weights, base));
    misfit.map_or(Ok(()), Err)
}

/// Every tensor of a safetensors file, f32.
pub(crate) fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = fs_err::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if bytes.is_empty() {
        return Err(not_an_adapter(path, "the file is empty", "copy the adapter again"));
    }
    let header = Header::parse(&bytes).map_err(|source| Error::Header { path: path.to_owned(), source })?;
    if header.tensors.is_empty() {
        return Err(not_an_adapter(path, "the file holds no tensor", "train or copy the adapter again"));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in &header.tensors {
        let tensor = read_tensor(path, name, info, &bytes)?;
        check_finite(Some(path), name, &tensor)?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}

fn read_tensor(path: &Path, name: &str, info: &TensorInfo, bytes: &[u8]) -> Result<Tensor> {
    let dtype = match info.dtype {
        FileDtype::F32 => DType::F32,
        FileDtype::F16 => DType::F16,
        FileDtype::BF16 => DType::BF16,
        other => {
            let (path, name) = (path.to_owned(), name.to_owned());
            return Err(Error::Type { path, name, given: other.to_string() });
        }
    };
    Tensor::from_raw_buffer(&bytes[info.range.clone()], dtype, &info.shape, &Device::Cpu)
        .and_then(|t| t.to_dtype(DType::F32))
        .map_err(doing("read a tensor of the adapter"))
}

fn check_finite(path: Option<&Path>, name: &str, tensor: &Tensor) -> Result<()> {
    let values = to_vec_f32(tensor).map_err(doing("read the adapter's values"))?;
    match values.iter().filter(|v| !v.is_finite()).count() {
        0 => Ok(()),
        count => Err(Error::NotFinite {
            path: path.map(Path::to_owned),
            name: name.into(),
            count,
            total: values.len(),
        }),
    }
}

fn not_an_adapter(path: &Path, what: &str, remedy: &'static str) -> Error {
    Error::NotAnAdapter { path: path.to_owned(), what: what.to_owned(), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use taper_diagnostics::Diagnose;
    use taper_nn::{FrozenWeight, Linear, ModuleMut, Weight};

    struct One(Linear);

    impl VisitModules for One {
        fn visit_modules(
            &mut self,
            visit: &mut dyn FnMut(ModuleMut<'_>) -> taper_nn::Result<()>,
        ) -> taper_nn::Result<()> {
            visit(ModuleMut::Linear(&mut self.0))
        }
    }

    /// A model of one layer, 3 in, 5 out.
    fn one() -> One {
        let weight = Tensor::zeros((5, 3), DType::F32, &Device::Cpu).unwrap();
        One(Linear::new("model.q_proj", Weight::Frozen(FrozenWeight::dense(&weight).unwrap()), None))
    }

    const A: &str = "base_model.model.model.q_proj.lora_A.weight";
    const B: &str = "base_model.model.model.q_proj.lora_B.weight";
    const CONFIG: &str = r#"{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}"#;

    fn weights(tensors: &[(&str, &[usize])]) -> Vec<u8> {
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        let tensors = tensors.iter().map(|(name, shape)| ((*name).to_owned(), ones(shape))).collect();
        AdapterWeights { tensors }.to_bytes().unwrap()
    }

    fn load_files(config: &str, weights: &[u8]) -> Result<Adapter> {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(CONFIG_FILE), config).unwrap();
        fs_err::write(folder.path().join(WEIGHTS_FILE), weights).unwrap();
        load(folder.path(), &mut one(), LoadMode::Inference)
    }

    fn told(outcome: Result<Adapter>) -> String {
        let error = outcome.unwrap_err();
        assert!(error.location().is_some(), "{error} has no place");
        let problem = taper_diagnostics::Problem::from_error("x", &error);
        format!("{}; {}", problem.message, problem.hint.unwrap_or_default())
    }

    #[test]
    fn every_tensor_is_used_and_none_is_missing() {
        load_files(CONFIG, &weights(&[(A, &[2, 3]), (B, &[5, 2])])).unwrap();
        let surplus = "base_model.model.model.q_proj.lora_magnitude_vector";
        let told_of = |tensors: &[(&str, &[usize])]| told(load_files(CONFIG, &weights(tensors)));
        let text = told_of(&[(A, &[2, 3]), (B, &[5, 2]), (surplus, &[5])]);
        assert!(text.contains(surplus) && text.contains("DoRA"), "{text}");
        let text = told_of(&[(A, &[2, 3])]);
        assert!(text.contains("missing") && text.contains(B), "{text}");
        let text = told_of(&[("model.q_proj.lora_a", &[2, 3]), (B, &[5, 2])]);
        assert!(text.contains("as mlx-lm names") || text.contains("as PEFT names"), "{text}");
    }

    #[test]
    fn a_shape_that_does_not_fit_says_what_the_difference_means() {
        let told_of = |tensors: &[(&str, &[usize])]| told(load_files(CONFIG, &weights(tensors)));
        let text = told_of(&[(A, &[4, 3]), (B, &[5, 4])]);
        assert!(text.contains("its rank is 4") && text.contains("`\"r\": 4` without"), "{text}");
        let text = told_of(&[(A, &[3, 2]), (B, &[2, 5])]);
        assert!(text.contains("transposed"), "{text}");
        let text = told_of(&[(A, &[2, 7]), (B, &[5, 2])]);
        assert!(text.contains("another base"), "{text}");
    }

    #[test]
    fn what_is_no_adapter_is_named() {
        let sound = weights(&[(A, &[2, 3]), (B, &[5, 2])]);
        assert!(told(load_files(CONFIG, b"")).contains("empty"));
        assert!(told(load_files(CONFIG, &weights(&[]))).contains("no tensor"));
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
        let text = told(load_files(CONFIG, pointer));
        assert!(text.contains("git-lfs pointer") && text.contains("git lfs pull"), "{text}");
        assert!(told(load_files(CONFIG, &sound[..sound.len() - 4])).contains("cannot be read"));
        let unsupported = "{\"peft_type\": \"LORA\", \"use_qalora\": true}";
        assert!(told(load_files(unsupported, &sound)).contains("use_qalora"));
    }

    #[test]
    fn folders_of_other_tools_are_named() {
        let told_with = |files: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                fs_err::write(folder.path().join(file), CONFIG).unwrap();
            }
            told(load(folder.path(), &mut one(), LoadMode::Inference))
        };
        assert!(told_with(&[]).contains("adapter_model.safetensors"));
        let text = told_with(&[CONFIG_FILE, "adapters.safetensors"]);
        assert!(text.contains("adapters.safetensors") || text.contains("cannot be read"), "{text}");
        assert!(told_with(&[CONFIG_FILE, "adapter_model.bin"]).contains("pickle"));
        assert!(told_with(&[CONFIG_FILE]).contains("there is no `adapter_model.safetensors`"));
    }

    #[test]
    fn nan_is_refused_on_reading_and_on_writing() {
        let mut bytes = weights(&[(A, &[2, 3]), (B, &[5, 2])]);
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        let text = told(load_files(CONFIG, &bytes));
        assert!(text.contains("1 of the 10 values") && text.contains(B), "{text}");
        let nan = Tensor::new(&[f32::INFINITY], &Device::Cpu).unwrap();
        let weights = AdapterWeights { tensors: BTreeMap::from([("x".to_owned(), nan)]) };
        assert!(matches!(weights.to_bytes(), Err(Error::NotFinite { .. })));
    }

    #[test]
    fn halves_are_widened_and_other_types_refused() {
        let file = |dtype: Dtype, bytes: &[u8]| {
            let views = [(A, TensorView::new(dtype, vec![2, 3], bytes).unwrap())];
            let folder = tempfile::tempdir().unwrap();
            fs_err::write(folder.path().join(WEIGHTS_FILE), safetensors::serialize(views, None).unwrap())
                .unwrap();
            AdapterWeights::read(folder.path())
        };
        // 1.0 is 0x3f80 in bf16 and 0x3c00 in f16.
        for (dtype, one) in [(Dtype::BF16, [0x80, 0x3f]), (Dtype::F16, [0x00, 0x3c])] {
            let read = file(dtype, &one.repeat(6)).unwrap();
            assert_eq!(to_vec_f32(read.get(A).unwrap()).unwrap(), [1.0; 6]);
        }
        assert!(matches!(file(Dtype::I32, &[0; 24]), Err(Error::Type { .. })));
    }

    #[test]
    fn an_order_of_patterns_that_sorting_would_change_is_not_saved() {
        let config = r#"{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2, "model.q_proj": 4}}"#;
        let adapter = load_files(config, &weights(&[(A, &[2, 3]), (B, &[5, 2])])).unwrap();
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(adapter.save(folder.path()), Err(Error::Ambiguous { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(cut in 0usize..400, at in 0usize..400, byte: u8) {
            let mut bytes = weights(&[(A, &[2, 3]), (B, &[5, 2])]);
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = load_files(CONFIG, &bytes);
        }
    }
}
