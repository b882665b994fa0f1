//! The device that this program computes on: the one that `--device` asks for, opened once.

use crate::cli::CommonArgs;
use crate::fault::user_error;
use crate::output::say;
use candle_core::Device;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use taper_nn::{DeviceError, VisitModules};

/// What `--device` can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU or none.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => {
                let number = other.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.map(Self::Cuda).ok_or_else(|| "`auto`, `cpu`, `cuda` or `cuda:N` is meant".to_owned())
            }
        }
    }
}

/// The device of `--device`. With `auto`, says why it is the CPU where this build could use a GPU.
///
/// # Errors
/// When a GPU is asked for and is not to be had.
pub(crate) fn open(common: &CommonArgs) -> anyhow::Result<Device> {
    open_choice(common.device)
}

/// [`open`] for verbs that have this flag alone.
pub(crate) fn open_choice(choice: DeviceChoice) -> anyhow::Result<Device> {
    static OPENED: Mutex<Option<Device>> = Mutex::new(None);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = &*opened {
        return Ok(device.clone());
    }
    let device = match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Auto => match taper_nn::open_device(0) {
            Ok(device) => told(device),
            Err(DeviceError::NotBuilt) => Device::Cpu,
            Err(error) => {
                say(&format!("device cpu ({error})"));
                Device::Cpu
            }
        },
        DeviceChoice::Cuda(ordinal) => taper_nn::open_device(ordinal).map(told).map_err(|error| {
            let help = match error {
                DeviceError::NotBuilt => {
                    "build with `cargo build --release --features cuda` (docs/gpu.md), or use `--device cpu`"
                }
                DeviceError::TooOld { .. } => "use `--device cpu`",
                DeviceError::Unavailable(_) => {
                    "docs/gpu.md says what is needed; `--device auto` takes the CPU where there is no GPU"
                }
            };
            user_error(format!("there is no device `cuda:{ordinal}`: {error}"), help)
        })?,
    };
    *opened = Some(device.clone());
    Ok(device)
}

/// Find out early that a GPU which is asked for is not there.
pub(crate) fn check(common: &CommonArgs) -> anyhow::Result<()> {
    if matches!(common.device, DeviceChoice::Cuda(_)) { open(common).map(drop) } else { Ok(()) }
}

/// Put a model's weights on a device: `max_memory` bytes of them at most.
pub(crate) fn place(
    model: &mut dyn VisitModules,
    device: &Device,
    max_memory: Option<u64>,
) -> anyhow::Result<()> {
    taper_nn::move_to(model, device, max_memory).map_err(|error| {
        user_error(
            format!("the base cannot be put on the GPU: {error}"),
            "hold it in 4 bits (`model.quantize = \"nf4\"`, or a GGUF file), let `model.max_memory` leave some of its layers on the host, or use `--device cpu`",
        )
    })
}

fn told(device: Device) -> Device {
    let memory = taper_nn::memory_of(&device);
    let memory =
        memory.map(|m| format!(", {:.1} of {:.1} GiB free", gib(m.free), gib(m.total))).unwrap_or_default();
    say(&format!("device {}{memory}", taper_nn::device_name(&device)));
    device
}

/// The device of a measurement, with the memory that it took.
pub(crate) fn figures(device: &Device) -> serde_json::Value {
    let name = taper_nn::device_name(device);
    match taper_nn::memory_of(device) {
        None => serde_json::json!({ "name": name }),
        Some(memory) => serde_json::json!({
            "name": name, "total_bytes": memory.total, "used_bytes": memory.used, "peak_bytes": memory.peak,
            "reserved_bytes": memory.reserved, "host_operations": taper_nn::host_operations(),
        }),
    }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_as_torch_names_it() {
        let read = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(read("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(read("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(read("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(read("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        for bad in ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda0", "cpu:0"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
