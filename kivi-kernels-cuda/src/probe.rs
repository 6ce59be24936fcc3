//! Whether there is a CUDA device, and if not, why.

use cudarc::driver::CudaContext;
use libloading::Library;

use crate::CudaError;

const DRIVERS: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// The number of CUDA devices of this machine, at least 1.
///
/// # Errors
/// [`CudaError::NoDevice`], which says why there is none.
pub fn device_count() -> Result<usize, CudaError> {
    driver()?;
    let count = CudaContext::device_count().map_err(|error| {
        let error = CudaError::Driver { what: "the driver does not start", error };
        CudaError::NoDevice(error.to_string())
    })?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => {
            Err(CudaError::NoDevice("the driver finds none (see nvidia-smi and CUDA_VISIBLE_DEVICES)".into()))
        }
    }
}

/// Fails unless the driver's library can be loaded; without it, cudarc would panic at its first call.
fn driver() -> Result<(), CudaError> {
    // SAFETY: the driver's library is made to be loaded by any process; cudarc loads the same one next.
    let found = DRIVERS.iter().any(|name| unsafe { Library::new(*name) }.is_ok());
    let why = || format!("{} not found (is NVIDIA's driver installed?)", DRIVERS[0]);
    if found { Ok(()) } else { Err(CudaError::NoDevice(why())) }
}

/// Fails unless the machine has device `ordinal`.
pub(crate) fn device(ordinal: usize) -> Result<(), CudaError> {
    let count = device_count()?;
    let why = || format!("number {ordinal} was asked for, this machine has {count}, counted from 0");
    if ordinal < count { Ok(()) } else { Err(CudaError::NoDevice(why())) }
}
