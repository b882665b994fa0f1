//! A device as kernels see it: a stream, cuBLAS, and the functions that were loaded.

use cudarc::cublas::CudaBlas;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, sys,
};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Why something could not be done on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuError {
    /// No memory for so many bytes.
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// What the driver or cuBLAS said, and of what.
    Failed {
        /// The kernel or the function.
        what: String,
        /// The message.
        message: String,
    },
}

impl std::fmt::Display for GpuError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfMemory { bytes } => write!(f, "{OUT_OF_MEMORY}: {bytes} more bytes are not to be had"),
            Self::Failed { what, message } => write!(f, "`{what}` on the GPU: {message}"),
        }
    }
}

impl std::error::Error for GpuError {}

/// What the message of [`GpuError::OutOfMemory`] begins with, for who has the message alone.
pub const OUT_OF_MEMORY: &str = "out of GPU memory";

impl GpuError {
    pub(super) fn launch(what: &str, error: DriverError) -> Self {
        if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Self::OutOfMemory { bytes: 0 };
        }
        Self::Failed { what: what.to_owned(), message: message_of(error) }
    }

    /// An allocation of so many bytes that failed.
    pub fn memory(bytes: usize, error: DriverError) -> Self {
        if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Self::OutOfMemory { bytes };
        }
        Self::launch("allocate", error)
    }
}

fn message_of(error: DriverError) -> String {
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    format!("{:?}{}", error.0, text.map(|text| format!(", {text}")).unwrap_or_default())
}

/// The sources of kernels, each a module of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Module {
    /// `cuda/activation.cu`.
    Activation,
    /// `cuda/attention.cu`.
    Attention,
    /// `cuda/cross_entropy.cu`.
    CrossEntropy,
    /// `cuda/decode.cu`.
    Decode,
    /// `cuda/dropout.cu`.
    Dropout,
    /// `cuda/elementwise.cu`.
    Elementwise,
    /// `cuda/flash.cu`.
    Flash,
    /// `cuda/norm.cu`.
    Norm,
    /// `cuda/optimizer.cu`.
    Optimizer,
    /// `cuda/rope.cu`.
    Rope,
}

impl Module {
    fn ptx(self) -> &'static str {
        macro_rules! ptx {
            ($name:literal) => {
                include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx"))
            };
        }
        match self {
            Self::Activation => ptx!("activation"),
            Self::Attention => ptx!("attention"),
            Self::CrossEntropy => ptx!("cross_entropy"),
            Self::Decode => ptx!("decode"),
            Self::Dropout => ptx!("dropout"),
            Self::Elementwise => ptx!("elementwise"),
            Self::Flash => ptx!("flash"),
            Self::Norm => ptx!("norm"),
            Self::Optimizer => ptx!("optimizer"),
            Self::Rope => ptx!("rope"),
        }
    }
}

/// A device with its one stream. Cheap to clone; clones share what is loaded.
#[derive(Clone)]
pub struct Gpu {
    stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    loaded: Arc<Mutex<Loaded>>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<Module, Arc<CudaModule>>,
    functions: HashMap<String, (CudaFunction, u32)>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.stream.context().ordinal())
    }
}

/// Dynamic shared memory that a kernel may have without asking.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

impl Gpu {
    /// Device `ordinal`, with a stream and a handle of its own.
    ///
    /// # Errors
    /// What the driver and cuBLAS say.
    pub fn open(ordinal: usize) -> Result<Self, GpuError> {
        let failed = |e| GpuError::launch("open the device", e);
        let context = CudaContext::new(ordinal).map_err(failed)?;
        super::prepare(&context);
        let stream = context.new_stream().map_err(failed)?;
        let blas = CudaBlas::new(stream.clone());
        let blas =
            blas.map_err(|e| GpuError::Failed { what: "open cuBLAS".into(), message: e.to_string() })?;
        Ok(Self::new(stream, Arc::new(blas)))
    }

    /// The device of a stream, with a handle of cuBLAS that works on it.
    pub fn new(stream: Arc<CudaStream>, blas: Arc<CudaBlas>) -> Self {
        Self { stream, blas, loaded: Arc::default() }
    }

    /// The stream that everything is queued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// cuBLAS on that stream.
    pub fn blas(&self) -> &Arc<CudaBlas> {
        &self.blas
    }

    /// A copy of host memory on the device.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, GpuError> {
        if values.is_empty() {
            // The driver refuses to allocate no bytes.
            // SAFETY: nobody reads it.
            let room = unsafe { self.stream.alloc::<u8>(1) }.map_err(|e| GpuError::memory(1, e))?;
            // SAFETY: the memory is the stream's, and freed with the slice alone.
            return Ok(unsafe { self.stream.upgrade_device_ptr(room.leak(), 0) });
        }
        self.stream.clone_htod(values).map_err(|e| GpuError::memory(size_of_val(values), e))
    }

    /// A copy of device memory on the host. Waits for the device.
    ///
    /// # Errors
    /// What the driver says: also what an earlier kernel did wrong.
    pub fn download<T: DeviceRepr>(&self, values: &impl DevicePtr<T>) -> Result<Vec<T>, GpuError> {
        self.stream.clone_dtoh(values).map_err(|e| GpuError::launch("copy to the host", e))
    }

    /// A kernel, loaded at its first use, which may have `shared` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn function(&self, module: Module, name: &str, shared: u32) -> Result<CudaFunction, GpuError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((function, allowed)) = loaded.functions.get(name)
            && shared <= *allowed
        {
            return Ok(function.clone());
        }
        let failed = |e| GpuError::launch(name, e);
        let held = match loaded.modules.get(&module) {
            Some(held) => held.clone(),
            None => {
                let held = self.stream.context().load_module(Ptx::from_src(module.ptx())).map_err(failed)?;
                loaded.modules.insert(module, held.clone());
                held
            }
        };
        let function = held.load_function(name).map_err(failed)?;
        if shared > SHARED_WITHOUT_ASKING {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared as i32).map_err(failed)?;
        }
        let allowed = shared.max(SHARED_WITHOUT_ASKING);
        loaded.functions.insert(name.to_owned(), (function.clone(), allowed));
        Ok(function)
    }
}
