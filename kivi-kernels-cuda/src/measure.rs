//! Measuring: queued ops timed on the device, memory filled and read. For benches; no op of the backend uses it.

use cudarc::driver::sys::{CUdevice_attribute, CUevent_flags};
use cudarc::driver::{CudaEvent, CudaGraph};

use crate::device::Cuda;
use crate::{Act, CudaBuffer, CudaError, ops};

impl<A: Act> Cuda<A> {
    /// Multiprocessors of the device.
    ///
    /// # Errors
    /// A failure of the driver.
    pub fn multiprocessors(&self) -> Result<usize, CudaError> {
        let count = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let count = self.context.attribute(count).map_err(CudaError::driver("counting multiprocessors"))?;
        Ok(count as usize)
    }

    /// Bytes of device memory that are free when everything that was queued is done.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        // Memory that was given back is free from here on.
        self.stream.synchronize().map_err(CudaError::driver("waiting for the queue"))?;
        let (free, _) = self.context.mem_get_info().map_err(CudaError::driver("asking for free memory"))?;
        Ok(free)
    }

    /// Seconds that each of `samples` runs of a graph takes on the device, graph `i` being what `queue(i)` queues; the
    /// `graphs` graphs take turns, and each runs once before the first that counts. All runs are queued before one is
    /// waited for: gaps between launches are the device's own.
    ///
    /// `queue` is called once a graph, and what it queues is recorded, not run. It calls ops alone, over buffers that
    /// outlive this call, and each of these ops has run before; no memory is allocated, written or read in it. With
    /// `KIVI_SYNC=1` in the environment ops wait, which cannot be recorded: an error.
    ///
    /// # Errors
    /// Those of `queue`, or a failure of the device.
    pub fn time<E: From<CudaError>>(
        &self,
        graphs: usize,
        samples: usize,
        mut queue: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Vec<f64>, E> {
        let graphs: Vec<CudaGraph> =
            (0..graphs).filter_map(|i| self.capture(|| queue(i)).transpose()).collect::<Result<_, E>>()?;
        if graphs.is_empty() {
            return Ok(vec![0.0; samples]);
        }
        Ok(self.replay(&graphs, samples)?)
    }

    fn replay(&self, graphs: &[CudaGraph], samples: usize) -> Result<Vec<f64>, CudaError> {
        let failed = |error| CudaError::driver("timing ops")(error);
        for graph in graphs {
            graph.launch().map_err(failed)?;
        }
        let event = || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed);
        let mut events: Vec<CudaEvent> = vec![event()?];
        for graph in graphs.iter().cycle().take(samples) {
            graph.launch().map_err(failed)?;
            events.push(event()?);
        }
        self.stream.synchronize().map_err(failed)?;
        let seconds = |pair: &[CudaEvent]| Ok(f64::from(pair[0].elapsed_ms(&pair[1]).map_err(failed)?) / 1e3);
        events.windows(2).map(seconds).collect()
    }

    /// Adds up `words`, modulo 2^32, into as many parts as there are `sums`, or fewer: the first ones of them. It reads
    /// each word once and does nothing else, so that its time is that of reading.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn sum_words(&self, words: &CudaBuffer<u32>, sums: &mut CudaBuffer<u32>) -> Result<(), CudaError> {
        ops::sum_words(self, words, sums)
    }
}
