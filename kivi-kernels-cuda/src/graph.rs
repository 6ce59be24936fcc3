//! Steps as CUDA graphs: a step that comes again is one launch.

use std::collections::HashMap;

use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use kivi_kernels::StepKey;

use crate::device::Cuda;
use crate::{Act, CudaError};

/// Graphs that are kept; of more, the one that was not used for the longest time goes.
const MOST: usize = 128;

/// A graph, which goes when nothing of it runs any more.
struct Graph {
    graph: CudaGraph,
    context: std::sync::Arc<cudarc::driver::CudaContext>,
    stream: std::sync::Arc<cudarc::driver::CudaStream>,
}

// SAFETY: graphs belong to no thread, and this one is used by one at a time: launching takes `&mut Recordings`.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // A fault of the device is told by the next call that can tell it.
        let _ = self.context.bind_to_thread().and_then(|()| self.stream.synchronize());
    }
}

/// A step that was seen before.
enum Recording {
    /// Run once: its kernels are loaded, its products have their algorithms.
    Warm,
    /// Recorded; none if it queues nothing.
    Graph(Option<Graph>),
}

/// The steps of one owner of buffers that were seen before, and their graphs.
#[derive(Default)]
pub struct Recordings {
    steps: HashMap<StepKey, (u64, Recording)>,
    uses: u64,
}

impl Recordings {
    /// How many graphs there are.
    pub fn graphs(&self) -> usize {
        self.steps.values().filter(|(_, step)| matches!(step, Recording::Graph(_))).count()
    }

    /// What is known of a step, which is used now.
    fn get(&mut self, key: StepKey) -> Option<&mut Recording> {
        self.uses += 1;
        let (used, step) = self.steps.get_mut(&key)?;
        *used = self.uses;
        Some(step)
    }

    fn insert(&mut self, key: StepKey, step: Recording) {
        let oldest = self.steps.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
        if let Some(oldest) = oldest.filter(|_| self.steps.len() >= MOST && !self.steps.contains_key(&key)) {
            self.steps.remove(&oldest);
        }
        self.steps.insert(key, (self.uses, step));
    }
}

impl<A: Act> Cuda<A> {
    /// Runs a step: the first time as it is, the second time as a graph, which serves from then on.
    pub(crate) fn run_step<E: From<CudaError>>(
        &self,
        recordings: &mut Recordings,
        key: StepKey,
        step: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.graphs || !key.is_decode() {
            return step();
        }
        match recordings.get(key) {
            None => {
                step()?;
                recordings.insert(key, Recording::Warm);
            }
            Some(Recording::Warm) => {
                let graph = self.capture(step)?.map(|graph| self.graph(graph));
                launch(graph.as_ref())?;
                recordings.insert(key, Recording::Graph(graph));
            }
            Some(Recording::Graph(graph)) => launch(graph.as_ref())?,
        }
        Ok(())
    }

    fn graph(&self, graph: CudaGraph) -> Graph {
        let (context, stream) = (self.context.clone(), self.stream.clone());
        Graph { graph, context, stream }
    }

    /// What `queue` queues; nothing if that is nothing.
    pub(crate) fn capture<E: From<CudaError>>(
        &self,
        queue: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<CudaGraph>, E> {
        // A kernel that has not run yet may be loaded in between, which other modes forbid.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        self.stream.begin_capture(mode).map_err(CudaError::driver("recording ops"))?;
        self.settled.begin();
        let queued = queue();
        self.settled.end();
        // Also after an error: until it ends, the stream runs nothing.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        queued?;
        Ok(graph.map_err(CudaError::driver("recording ops"))?)
    }
}

fn launch(graph: Option<&Graph>) -> Result<(), CudaError> {
    graph.map_or(Ok(()), |graph| graph.graph.launch().map_err(CudaError::driver("a recorded step")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_engines_hold_may_move_to_another_thread() {
        fn moves<T: Send>() {}
        moves::<Recordings>();
        moves::<crate::Later>();
        moves::<Cuda<half::f16>>();
    }

    #[test]
    fn the_step_that_was_not_used_for_the_longest_time_goes() {
        let key = |n_seqs| StepKey { n_seqs, n_tokens: n_seqs, max_new: 1, variant: 0 };
        let mut recordings = Recordings::default();
        for n in 0..MOST {
            assert!(recordings.get(key(n)).is_none());
            recordings.insert(key(n), Recording::Warm);
        }
        assert!(recordings.get(key(0)).is_some());
        recordings.insert(key(MOST), Recording::Warm);
        assert!(recordings.get(key(0)).is_some() && recordings.get(key(1)).is_none());
        assert_eq!((recordings.steps.len(), recordings.graphs()), (MOST, 0));
    }
}
