//! The texts that a Hub folder has beside its weights, made from a GGUF file.

use super::{GgufError, Header, MAX_HEADER_BYTES, TensorInfo, config, shown, tokenizer};
use crate::{Error, Result};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use taper_quant::GgmlType;

/// Bytes of the first look at a file; most headers of chat models are shorter.
const FIRST_LOOK: usize = 8 << 20;
/// More numbers than half of any head has.
const MAX_FACTORS: usize = 1 << 14;

/// The texts that a Hub folder has beside its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companions {
    /// Of `config.json`.
    pub config: String,
    /// Of `tokenizer.json`; `None` for a file without a tokenizer.
    pub tokenizer: Option<String>,
    /// Of `tokenizer_config.json`, with the chat template; as `tokenizer`.
    pub tokenizer_config: Option<String>,
    /// Of `generation_config.json`; as `tokenizer`.
    pub generation_config: Option<String>,
}

impl Companions {
    /// Make the texts from a header, and from the numbers of the small tensors that describe the rotary embedding.
    ///
    /// # Errors
    /// When what the file holds is not supported, or metadata is missing or out of range.
    pub fn make(header: &Header, rotary: &RotaryFactors) -> Result<Self, GgufError> {
        let texts = tokenizer::texts(header)?;
        let config = config::text(header, rotary)?;
        let (tokenizer, tokenizer_config, generation_config) = match texts {
            Some(texts) => {
                (Some(texts.tokenizer), Some(texts.tokenizer_config), Some(texts.generation_config))
            }
            None => (None, None, None),
        };
        Ok(Self { config, tokenizer, tokenizer_config, generation_config })
    }
}

/// What the frequencies of a rotary embedding are divided by, a number for each pair, where a file has tensors of such numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RotaryFactors {
    /// `rope_freqs.weight`: for texts of any length.
    pub freqs: Option<Vec<f64>>,
    /// `rope_factors_short.weight`: for texts up to the length that the model was first trained for.
    pub short: Option<Vec<f64>>,
    /// `rope_factors_long.weight`: for longer ones.
    pub long: Option<Vec<f64>>,
}

/// [`Companions::make`] of a file on the disk, of which no more than the header and the factors are read.
///
/// # Errors
/// As [`read_header`] and [`Companions::make`].
pub fn read_companions(path: &Path) -> Result<Companions> {
    let header = read_header(path)?;
    let mut file = fs_err::File::open(path)?;
    let mut factors = |name: &str| -> Result<Option<Vec<f64>>> {
        let Some(info) = header.tensors.get(name) else { return Ok(None) };
        check_factors(name, info).map_err(|source| Error::Gguf { path: path.into(), source })?;
        let mut bytes = vec![0; info.range.len()];
        file.seek(SeekFrom::Start(info.range.start as u64))?;
        file.read_exact(&mut bytes)?;
        Ok(Some(numbers(&bytes)))
    };
    let rotary = RotaryFactors {
        freqs: factors("rope_freqs.weight")?,
        short: factors("rope_factors_short.weight")?,
        long: factors("rope_factors_long.weight")?,
    };
    Companions::make(&header, &rotary).map_err(|source| Error::Gguf { path: path.into(), source })
}

/// The header of a file on the disk, of which no more than that is read.
///
/// # Errors
/// When it cannot be read, and as [`Header::parse`].
pub fn read_header(path: &Path) -> Result<Header> {
    let mut file = fs_err::File::open(path)?;
    let broken = |source| Error::Gguf { path: path.into(), source };
    let file_len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let most = file_len.min(MAX_HEADER_BYTES);
    let mut start = Vec::new();
    let mut wanted = most.min(FIRST_LOOK);
    loop {
        let missing = wanted - start.len();
        (&mut file).take(missing as u64).read_to_end(&mut start)?;
        match Header::parse_start(&start, file_len) {
            Err(GgufError::HeaderCutOff { end, .. }) if start.len() == wanted && wanted < most => {
                let end = usize::try_from(end).unwrap_or(most);
                wanted = end.max(wanted.saturating_mul(2)).min(most);
            }
            parsed => return parsed.map_err(broken),
        }
    }
}

fn check_factors(name: &str, info: &TensorInfo) -> Result<(), GgufError> {
    match info.shape.as_slice() {
        [1..=MAX_FACTORS] if info.ggml_type == GgmlType::F32 => Ok(()),
        shape => Err(GgufError::TensorShape {
            tensor: shown(name),
            shape: shape.to_vec(),
            expected: format!("at most {MAX_FACTORS} numbers of {}", GgmlType::F32),
        }),
    }
}

fn numbers(bytes: &[u8]) -> Vec<f64> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| super::metadata::shortest(f32::from_le_bytes(*word))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use taper_testkit::GgufFile;

    #[test]
    fn a_header_longer_than_the_first_look_is_read_whole() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("m.gguf");
        let long = "x".repeat(FIRST_LOOK);
        let file = GgufFile::new().text("long", &long).u32("n", 3).zeros("t", &[4]).bytes();
        fs_err::write(&path, &file).unwrap();
        let header = read_header(&path).unwrap();
        assert_eq!(header, Header::parse(&file).unwrap());
        fs_err::write(&path, &file[..FIRST_LOOK + 10]).unwrap();
        let error = read_header(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read `{}`", path.display()));
        let Error::Gguf { source: GgufError::HeaderCutOff { bytes, .. }, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(bytes, FIRST_LOOK + 10);
    }
}
