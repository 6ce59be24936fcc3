//! Whether there is a CUDA device, and if not, why.

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, DriverError};
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

/// What a device is.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Compute capability: major, minor.
    pub compute_capability: (i32, i32),
    /// Bytes of its memory that are free.
    pub free_bytes: usize,
    /// Bytes of its memory.
    pub total_bytes: usize,
    /// The newest CUDA that its driver supports.
    pub driver: String,
}

/// The devices of this machine, each with what is wrong with it if it does not start.
///
/// # Errors
/// As [`device_count`].
pub fn devices() -> Result<Vec<Result<DeviceInfo, CudaError>>, CudaError> {
    let describe = |ordinal| describe(ordinal).map_err(CudaError::driver("starting the device"));
    Ok((0..device_count()?).map(describe).collect())
}

fn describe(ordinal: usize) -> Result<DeviceInfo, DriverError> {
    let context = CudaContext::new(ordinal)?;
    let (free_bytes, total_bytes) = context.mem_get_info()?;
    let major = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let driver = driver_version().map_or("unknown".into(), |(major, minor)| format!("{major}.{minor}"));
    let compute_capability = (major, minor);
    Ok(DeviceInfo { name: context.name()?, compute_capability, free_bytes, total_bytes, driver })
}

/// The newest CUDA that the driver supports: major, minor.
pub(crate) fn driver_version() -> Option<(i32, i32)> {
    let mut version = 0;
    for name in DRIVERS {
        // SAFETY: as in `driver`; the function writes one number, and is part of every driver.
        let asked = unsafe {
            Library::new(*name).ok().and_then(|library| {
                let ask: libloading::Symbol<'_, unsafe extern "C" fn(*mut i32) -> i32> =
                    library.get(b"cuDriverGetVersion\0").ok()?;
                Some(ask(&mut version))
            })
        };
        if asked == Some(0) {
            return Some((version / 1000, version % 1000 / 10));
        }
    }
    None
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
