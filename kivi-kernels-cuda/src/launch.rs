//! The only place that launches kernels.
//!
//! Where the device can, launches overlap (programmatic dependent launch): a kernel is loaded and its blocks are under way
//! while the one before it still runs, and there they wait for it (`wait_for_launch_before` in `kivi.cuh`, which says why that is
//! enough) before they read what it may write, and before they write. This changes when a kernel starts, not what it finds:
//!
//! - What others queue in between (cuBLASLt's kernels, copies, memsets, graphs, events) waits for the whole kernel before it,
//!   and so for all before that. A kernel of ours behind one that lets nothing start early, as cuBLASLt's may be, starts when that
//!   is done, and finds behind its wait what that wrote; behind what is no kernel it starts as it always did.
//! - To the host nothing changes: a stream, an event or a copy is done when the kernels before it are.
//! - In a recorded step an edge between two kernels becomes a programmatic one, which drivers know from CUDA 12.3 on. The first
//!   kernel of a graph waits for all before the graph.

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUlaunchAttributeID_enum as Attribute};
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg};

use crate::device::Cuda;
use crate::jit::{Source, Variant};
use crate::{Act, CudaError};

/// Threads of a block of every kernel that does not say otherwise, eight warps; the sources are told when they are compiled.
pub(crate) const BLOCK: usize = 256;

/// Most blocks of a grid along y; kernels loop where there are more rows.
pub(crate) const MAX_DOWN: usize = 65_535;

/// Whether a device of compute capability `major` overlaps launches with a driver of such a CUDA version.
pub(crate) fn can_overlap(major: usize, driver: Option<(i32, i32)>) -> bool {
    major >= 9 && driver.is_some_and(|version| version >= (12, 3))
}

/// The struct that a kernel takes.
#[repr(transparent)]
struct Params<P>(P);

// SAFETY: `P` is plain bytes without padding (`Pod`), and the size of the kernel's struct is checked when it is compiled
// (`KIVI_CHECK_SIZE`).
unsafe impl<P: Pod> DeviceRepr for Params<P> {}

impl<A: Act> Cuda<A> {
    /// Queues `kernel` of `source` on `grid` blocks; a grid without blocks only loads it.
    ///
    /// # Safety
    /// `params` must be the struct that the kernel takes, and every address that the kernel forms from it and from what it
    /// finds there must lie in live buffers of this device.
    pub(crate) unsafe fn launch<P: Pod>(
        &self,
        source: &'static Source,
        kernel: &'static str,
        grid: [usize; 3],
        params: P,
    ) -> Result<(), CudaError> {
        // SAFETY: as the caller says.
        unsafe { self.launch_variant(source, Variant { kernel, shape: None, shared: 0 }, grid, params) }
    }

    /// The same for a kernel of a shape, or with dynamic shared memory.
    ///
    /// # Safety
    /// As for [`Self::launch`].
    pub(crate) unsafe fn launch_variant<P: Pod>(
        &self,
        source: &'static Source,
        variant: Variant,
        grid: [usize; 3],
        params: P,
    ) -> Result<(), CudaError> {
        // SAFETY: as the caller says.
        unsafe { self.launch_blocks(source, variant, (grid, BLOCK), params) }
    }

    /// The same with blocks of so many threads, which `source` must be compiled for.
    ///
    /// # Safety
    /// As for [`Self::launch`].
    pub(crate) unsafe fn launch_blocks<P: Pod>(
        &self,
        source: &'static Source,
        variant: Variant,
        (grid, threads): ([usize; 3], usize),
        params: P,
    ) -> Result<(), CudaError> {
        let (kernel, [x, y, z]) = (variant.kernel, grid);
        if x > i32::MAX as usize || y > 65_535 || z > 65_535 {
            return Err(CudaError::Grid { kernel, grid });
        }
        let function = self.jit.function(&self.context, source, variant)?;
        // Loaded all the same: `prepare` counts on it.
        if grid.contains(&0) {
            return Ok(());
        }
        let config = LaunchConfig {
            grid_dim: (x as u32, y as u32, z as u32),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: variant.shared as u32,
        };
        // SAFETY: the caller vouches for `params`; the kernel takes one struct, and blocks of so many threads.
        let queued = unsafe { self.queue(&function, config, &Params(params)) };
        queued.map_err(CudaError::driver(kernel))?;
        if self.sync { self.stream.synchronize().map_err(CudaError::driver(kernel)) } else { Ok(()) }
    }

    /// # Safety
    /// As for [`Self::launch_blocks`].
    unsafe fn queue<P: Pod>(
        &self,
        function: &CudaFunction,
        config: LaunchConfig,
        params: &Params<P>,
    ) -> Result<(), DriverError> {
        if self.overlap && !self.settled.is_awaited() {
            // SAFETY: as the caller says.
            return unsafe { queue_overlapping(&self.stream, function, config, params) };
        }
        // SAFETY: as the caller says.
        unsafe { self.stream.launch_builder(function).arg(params).launch(config) }.map(|_| ())
    }
}

/// Queues a kernel that may start before the one before it is done; cudarc's launches have no attributes.
///
/// # Safety
/// As for [`Cuda::launch_blocks`]; the kernel waits (`wait_for_launch_before`) before it writes or reads what is not settled.
unsafe fn queue_overlapping<P: Pod>(
    stream: &CudaStream,
    function: &CudaFunction,
    config: LaunchConfig,
    params: &Params<P>,
) -> Result<(), DriverError> {
    stream.context().bind_to_thread()?;
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    let id = Attribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
    let (grid, block) = (config.grid_dim, config.block_dim);
    let config = sys::CUlaunchConfig {
        gridDimX: grid.0,
        gridDimY: grid.1,
        gridDimZ: grid.2,
        blockDimX: block.0,
        blockDimY: block.1,
        blockDimZ: block.2,
        sharedMemBytes: config.shared_mem_bytes,
        hStream: stream.cu_stream(),
        attrs: &mut attribute,
        numAttrs: 1,
    };
    let mut args = [std::ptr::from_ref(params).cast_mut().cast()];
    // SAFETY: as the caller says; the driver reads configuration, attribute and the one argument before it returns.
    unsafe {
        let function = function.cu_function();
        sys::cuLaunchKernelEx(&config, function, args.as_mut_ptr(), std::ptr::null_mut()).result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_overlap_where_device_and_driver_can() {
        assert!(can_overlap(9, Some((12, 3))) && can_overlap(12, Some((13, 0))));
        assert!(!can_overlap(8, Some((13, 0))), "Ampere and Ada");
        assert!(!can_overlap(9, Some((12, 2))), "would not record it");
        assert!(!can_overlap(9, None));
    }
}
