//! The kernels for NVIDIA GPUs: each does what the function of its name in this crate does, on slices in the memory of a device.
//!
//! The sources are in `cuda/`; the build compiles them to PTX for compute capability 8.0, which the driver compiles on for the card at
//! hand. Products of matrices are cuBLAS's. Nothing here waits for the device: work is queued on one stream, and what is freed behind it is
//! freed in that stream's order. The promises of this crate hold here too; sums have one order (no atomics), so the same inputs give the same bits on
//! the same card.
//!
//! The launch of a kernel is `unsafe` in the driver's bindings, since nothing compares a kernel's parameters with what it is given. Here each
//! module launches its own source's kernels alone, behind assertions on the lengths.

#![expect(unsafe_code, reason = "kernels are launched, and pointers handed to cuBLAS")]

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod decode;
pub mod dropout;
pub mod elementwise;
pub mod gemm;
mod gpu;
pub mod linear;
pub mod norm;
pub mod optimizer;
mod pool;
pub mod rope;
mod slices;
mod state;

pub use cudarc;
pub use gpu::{Gpu, GpuError, Module, OUT_OF_MEMORY};
pub use pool::{PoolMemory, pool_memory, prepare, reset_peak};
pub use slices::{Buffer, FloatType, Slice, SliceMut};

/// Launches `name` of a module's kernels on `grid` blocks of `block` threads with `shared` bytes of dynamic shared memory. Slices are given
/// as `&slice.ptr()`, numbers by reference, in the types of the kernel's parameters.
macro_rules! launch {
    ($gpu:expr, $module:ident, $name:expr, $grid:expr, $block:expr, $shared:expr, [$($arg:expr),* $(,)?]) => {{
        use $crate::cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
        let gpu: &$crate::cuda::Gpu = $gpu;
        let function = gpu.function($crate::cuda::Module::$module, $name, $shared)?;
        let config = LaunchConfig { grid_dim: $grid, block_dim: $block, shared_mem_bytes: $shared };
        // One expression, so that what is borrowed for an argument lives until the launch.
        // SAFETY: the arguments are those of the kernel of this name, and the caller has compared the lengths.
        unsafe { gpu.stream().launch_builder(&function)$(.arg($arg))*.launch(config) }
            .map_err(|e| $crate::cuda::GpuError::launch($name, e))?;
    }};
}
use launch;
