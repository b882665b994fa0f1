//! Where a run is planned for: the CPU, a GPU that is here, or a card that is somewhere else.

use crate::cli::PlanArgs;
use crate::device::{self, DeviceChoice};
use crate::fault::user_error;
use crate::memory::available_bytes;
use candle_core::Device;
use taper_train::plan::DRIVER_BYTES;
use taper_train::resident_bytes;

/// A place with its memory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) is_gpu: bool,
    /// The GPU, where it is one of this machine.
    pub(super) device: Option<Device>,
    /// Memory that the run may take, where that is known.
    pub(super) available: Option<u64>,
}

impl Place {
    pub(super) fn of(args: &PlanArgs) -> anyhow::Result<Self> {
        let choice = args.recipe.common.device;
        if let Some(available) = args.gpu_memory {
            if choice == DeviceChoice::Cpu {
                return Err(user_error(
                    "`--gpu-memory` is that of a GPU, and `--device cpu` is given",
                    "leave one of them out",
                ));
            }
            return Ok(Self { is_gpu: true, device: None, available: Some(available) });
        }
        match (device::open_choice(choice), choice) {
            (Ok(device), _) if device.is_cuda() => {
                Ok(Self { is_gpu: true, available: available_on(&device), device: Some(device) })
            }
            (Ok(_), _) => {
                let available = available_bytes().map(|free| free + resident_bytes().unwrap_or(0));
                Ok(Self { is_gpu: false, device: None, available })
            }
            // A plan needs no card.
            (Err(_), DeviceChoice::Cuda(_)) if !args.probe => {
                Ok(Self { is_gpu: true, device: None, available: None })
            }
            (Err(error), _) => Err(error),
        }
    }
}

/// Bytes of a GPU that this process may have: those that are free, those that it holds, and what its context takes, which plans count too.
pub(super) fn available_on(device: &Device) -> Option<u64> {
    let memory = taper_nn::memory_of(device)?;
    Some((memory.free + memory.reserved).min(memory.total) as u64 + DRIVER_BYTES)
}

/// What settings must bring a run below that was out of memory: the memory that there is, or, where the plan said that the run would fit, as much
/// below the plan as such a plan may be wrong.
pub(super) fn limit_after_failure(planned: u64, available: u64) -> u64 {
    if planned > available {
        return available;
    }
    let tensors = planned.saturating_sub(DRIVER_BYTES);
    planned - tensors / 10
}

#[cfg(test)]
mod tests {
    use super::{DRIVER_BYTES, limit_after_failure};

    #[test]
    fn settings_must_fit_and_a_plan_that_was_too_low_is_not_trusted_to_the_last_byte() {
        let limit =
            |planned, available| limit_after_failure(DRIVER_BYTES + planned, DRIVER_BYTES + available);
        assert_eq!(limit(1200, 1000), DRIVER_BYTES + 1000);
        assert_eq!(limit(1000, 1000), DRIVER_BYTES + 900);
        assert_eq!(limit(500, 1000), DRIVER_BYTES + 450);
    }
}
