//! The device that a model computes on.

use crate::{ModuleMut, Result, VisitModules, Weight};
use candle_core::{Device, Tensor};
use std::fmt;

/// Why a device cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceError {
    /// This build has no code for GPUs.
    NotBuilt,
    /// What the driver says.
    Unavailable(String),
    /// A card that the kernels do not run on.
    TooOld {
        /// Its name.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => f.write_str("this build has no code for GPUs"),
            Self::Unavailable(message) => f.write_str(message),
            Self::TooOld { name, capability: (major, minor) } => {
                write!(f, "{name} has compute capability {major}.{minor}, and 8.0 is the least")
            }
        }
    }
}

impl std::error::Error for DeviceError {}

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All that the device has.
    pub total: usize,
    /// What nobody has taken.
    pub free: usize,
    /// What our tensors take.
    pub used: usize,
    /// The most that they have taken.
    pub peak: usize,
    /// What is held for them, free parts between them included: the most there was.
    pub reserved: usize,
}

/// CUDA device `ordinal`, set up for one thread of work: a stream of its own, memory that is freed to a pool and kept there, no events.
///
/// # Errors
/// When this build has no code for it, there is no driver or no such device, or it is too old.
pub fn open_device(ordinal: usize) -> std::result::Result<Device, DeviceError> {
    #[cfg(feature = "cuda")]
    return crate::cuda::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = ordinal;
        Err(DeviceError::NotBuilt)
    }
}

/// What a person calls the device: `cpu`, or the card's name.
pub fn device_name(device: &Device) -> String {
    #[cfg(feature = "cuda")]
    if let Some(name) = crate::cuda::name(device) {
        return name;
    }
    let _ = device;
    "cpu".into()
}

/// The memory of a device that has its own; `None` for the CPU.
pub fn memory_of(device: &Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    return crate::cuda::memory(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        None
    }
}

/// Lets [`DeviceMemory::peak`] begin again at what is used now; false for the CPU.
pub fn reset_peak_memory(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return crate::cuda::reset_peak(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        false
    }
}

/// Bytes that an error says were asked of a device whose memory is spent, 0 where it does not say how many; `None` for any other error.
pub fn bytes_asked_of_full_device(error: &(dyn std::error::Error + 'static)) -> Option<u64> {
    // Our kernels' way to say it, and that of candle's own allocations.
    const OURS: &str = "out of GPU memory";
    const CANDLES: &str = "CUDA_ERROR_OUT_OF_MEMORY";
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if let Some((_, behind)) = text.split_once(OURS) {
            let number = behind.trim_start_matches([':', ' ']);
            let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
            return Some(number[..end].parse().unwrap_or(0));
        }
        if text.contains(CANDLES) {
            return Some(0);
        }
        next = error.source();
    }
    None
}

/// How many operations on tensors of a device this thread has computed on the host so far, for want of a kernel: none in training with LoRA.
pub fn host_operations() -> u64 {
    #[cfg(feature = "cuda")]
    return crate::cuda::staged_operations();
    #[cfg(not(feature = "cuda"))]
    0
}

/// A copy of the tensor on a device; the tensor itself where it is there.
///
/// # Errors
/// When there is no memory.
pub fn to_device(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    if tensor.device().same_device(device) {
        return Ok(tensor.clone());
    }
    #[cfg(feature = "cuda")]
    return match crate::cuda::Place::on(device) {
        Some(place) => place.upload(&crate::cuda::to_host(tensor)?),
        None => crate::cuda::to_host(tensor),
    };
    #[cfg(not(feature = "cuda"))]
    tensor.to_device(device)
}

/// Move a model's weights to a device, before adapters are put on it: what is made from its weights then lies there too. The table of a tied
/// head is moved once.
///
/// Of `max_memory` bytes for matrices the embedding takes its part first, then the linear layers in the order of the model; one that does not fit
/// stays on the host and is copied whenever it is used.
///
/// # Errors
/// When there is no memory, with the module.
pub fn move_to(model: &mut dyn VisitModules, device: &Device, max_memory: Option<u64>) -> Result<()> {
    let mut moved_weights: Vec<(Weight, Weight)> = Vec::new();
    let mut left = max_memory.unwrap_or(u64::MAX);
    let mut weight_of = |weight: &Weight, is_linear: bool| -> Result<Weight> {
        if let Some((_, moved)) = moved_weights.iter().find(|(from, _)| from.is_same(weight)) {
            return Ok(moved.clone());
        }
        let bytes = weight.bytes() as u64;
        if is_linear && bytes > left {
            return Ok(weight.clone());
        }
        left = left.saturating_sub(bytes);
        let there = weight.to_device(device)?;
        moved_weights.push((weight.clone(), there.clone()));
        Ok(there)
    };
    model.visit_modules(&mut |module| {
        let path = module.path().to_owned();
        let result = match module {
            ModuleMut::Linear(linear) => {
                weight_of(linear.weight(), true).and_then(|weight| linear.place_on(weight, device))
            }
            ModuleMut::Embedding(table) => {
                weight_of(table.weight(), false).map(|weight| table.set_weight(weight))
            }
            ModuleMut::RmsNorm(norm) => {
                to_device(&norm.weight(), device).and_then(|weight| norm.set_weight(weight))
            }
        };
        result.map_err(|e| e.context(format!("move `{path}` to the device")))
    })
}

#[cfg(test)]
mod tests {
    use super::bytes_asked_of_full_device;
    use candle_core::Error;

    #[test]
    fn spent_memory_is_told_from_other_errors_with_the_bytes_asked_for() {
        let asked = |text: &str| {
            bytes_asked_of_full_device(&Error::Msg(text.into()).context("differentiate block 3"))
        };
        assert_eq!(asked("out of GPU memory: 1048576 more bytes are not to be had"), Some(1 << 20));
        assert_eq!(asked("out of GPU memory"), Some(0));
        assert_eq!(asked("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"), Some(0));
        assert_eq!(asked("expected a tensor on the GPU"), None);
        #[cfg(feature = "cuda")]
        assert_eq!(asked(&taper_kernels::cuda::GpuError::OutOfMemory { bytes: 77 }.to_string()), Some(77));
    }
}
