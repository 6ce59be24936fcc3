//! The only place that launches kernels.

use bytemuck::Pod;
use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};

use crate::device::Cuda;
use crate::jit::{Source, Variant};
use crate::{Act, CudaError};

/// Threads of a block of every kernel that does not say otherwise, eight warps; the sources are told when they are compiled.
pub(crate) const BLOCK: usize = 256;

/// Blocks for a kernel that loops over `elements` with the threads of its whole grid: enough to fill any device.
pub(crate) fn blocks_for(elements: usize) -> usize {
    elements.div_ceil(BLOCK).min(1 << 16)
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
        let params = Params(params);
        let config = LaunchConfig {
            grid_dim: (x as u32, y as u32, z as u32),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: variant.shared as u32,
        };
        let mut launch = self.stream.launch_builder(&function);
        // SAFETY: the caller vouches for `params`; the kernel takes one struct, and blocks of so many threads.
        let queued = unsafe { launch.arg(&params).launch(config) };
        queued.map_err(CudaError::driver(kernel))?;
        if self.sync { self.stream.synchronize().map_err(CudaError::driver(kernel)) } else { Ok(()) }
    }
}
