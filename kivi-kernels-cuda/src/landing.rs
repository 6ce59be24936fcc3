//! Copies to the host that nobody waits for yet.

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, PinnedHostSlice, result};

use crate::device::Cuda;
use crate::{Act, CudaBuffer, CudaError};

/// Words that there is room for at least.
const LEAST: usize = 256;

/// Pinned memory, and when the copy to it is done.
pub(crate) struct Landing {
    words: PinnedHostSlice<u32>,
    arrived: CudaEvent,
}

impl Drop for Landing {
    fn drop(&mut self) {
        // The memory goes after the copy; a fault of the device is told by the next call that can tell it.
        let _ = self.arrived.synchronize();
    }
}

/// A copy to the host on its way.
pub struct Later {
    landing: Landing,
    len: usize,
}

impl<A: Act> Cuda<A> {
    fn new_landing(&self, len: usize) -> Result<Landing, CudaError> {
        let failed = |error| CudaError::driver("pinned memory")(error);
        let len = len.next_power_of_two().max(LEAST);
        // SAFETY: it is read after it was copied to. Cached, since the host reads it.
        let words = unsafe { self.context.alloc_pinned_with_flags(len, 0) }.map_err(failed)?;
        let arrived = self.context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING)).map_err(failed)?;
        Ok(Landing { words, arrived })
    }

    /// Queues the copy of the first elements.
    pub(crate) fn send_back(&self, src: &CudaBuffer<u32>, len: usize) -> Result<Later, CudaError> {
        src.check(0, len)?;
        let free = self.landings().pop().filter(|landing| landing.words.len() >= len);
        let mut landing = free.map_or_else(|| self.new_landing(len), Ok)?;
        let failed = |error| CudaError::driver("copy from the device")(error);
        let words = landing.words.as_mut_slice().map_err(failed)?;
        self.context.bind_to_thread().map_err(failed)?;
        let stream = self.stream.cu_stream();
        // SAFETY: the range is in the buffer, which is freed in the order of the stream; the words stay until they have arrived.
        let copied = unsafe { result::memcpy_dtoh_async(&mut words[..len], src.device_ptr(), stream) };
        copied.and_then(|()| landing.arrived.record(&self.stream)).map_err(failed)?;
        Ok(Later { landing, len })
    }

    /// Waits for the copy, and for nothing queued after it.
    pub(crate) fn arrival(&self, Later { landing, len }: Later) -> Result<Vec<u32>, CudaError> {
        let failed = |error| CudaError::driver("waiting for the queue")(error);
        landing.arrived.synchronize().map_err(failed)?;
        let words = landing.words.as_slice().map_err(failed)?[..len].to_vec();
        self.landings().push(landing);
        Ok(words)
    }
}
