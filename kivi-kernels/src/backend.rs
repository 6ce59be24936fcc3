//! The trait that a device implements.

use crate::{Element, KernelError, Spec, StepError, ops};

/// A device array.
pub trait Buffer<T: Element> {
    /// Number of elements.
    fn len(&self) -> usize;

    /// Whether there are no elements.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What can be allocated.
    pub free: usize,
    /// All of it.
    pub total: usize,
}

/// What makes two steps of one batch the same graph: equal keys launch the same kernels over the same buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    /// Sequences of the batch.
    pub n_seqs: usize,
    /// Rows of the batch.
    pub n_tokens: usize,
    /// Most rows of a sequence; 1 is a decode step.
    pub max_new: usize,
    /// What the step does besides, as its caller numbers it.
    pub variant: u32,
}

impl StepKey {
    /// Whether every sequence has exactly one row.
    pub fn is_decode(&self) -> bool {
        self.max_new == 1
    }
}

/// New words for parts of a buffer.
pub struct Patch<'a, B: Backend> {
    /// The buffer.
    pub dst: &'a mut B::Buffer<u32>,
    /// Where, and what; parts do not overlap.
    pub parts: Vec<(usize, Words<'a, B>)>,
}

/// Where the words of a [`Patch`] come from.
pub enum Words<'a, B: Backend> {
    /// The host.
    Host(Vec<u32>),
    /// One element of what [`ops::Argmax`] or [`ops::Sample`] wrote. `u32::MAX`, which is no token, becomes 0.
    Chosen(&'a B::Buffer<u32>, usize),
}

/// A device that runs transformer inference with a KIVI cache. See the crate's contract.
pub trait Backend: Sized {
    /// Type of activations.
    type Act: Element;
    /// A device array.
    type Buffer<T: Element>: Buffer<T>;
    /// What can go wrong.
    type Error: KernelError;
    /// What [`Self::record`] keeps: graphs, command buffers; empty when it begins. It belongs to who owns the buffers of the
    /// steps, and goes with them.
    type Recordings: Default;
    /// A copy to the host that is on its way; see [`Self::read_later`].
    type Later;

    /// Name of the device, for people.
    fn name(&self) -> &str;

    /// Whether every op is available for this kind of attention.
    fn supports(&self, spec: &Spec) -> bool;

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// [`crate::ErrorKind::OutOfMemory`], or a fault of an earlier op.
    fn zeros<T: Element>(&self, len: usize) -> Result<Self::Buffer<T>, Self::Error>;

    /// A buffer with the contents of `src`.
    ///
    /// # Errors
    /// As [`Self::zeros`].
    fn upload<T: Element>(&self, src: &[T]) -> Result<Self::Buffer<T>, Self::Error>;

    /// Replaces `src.len()` elements of `dst` from element `offset` on.
    ///
    /// # Errors
    /// A range outside the buffer, or a fault of an earlier op.
    fn write<T: Element>(
        &self,
        dst: &mut Self::Buffer<T>,
        offset: usize,
        src: &[T],
    ) -> Result<(), Self::Error>;

    /// Makes `dst` repetitions of `pattern`, the last one cut short; an empty pattern changes nothing.
    ///
    /// # Errors
    /// A fault of an earlier op.
    fn repeat<T: Element>(&self, dst: &mut Self::Buffer<T>, pattern: &[T]) -> Result<(), Self::Error> {
        let len = if pattern.is_empty() { 0 } else { dst.len() };
        for at in (0..len).step_by(pattern.len().max(1)) {
            self.write(dst, at, &pattern[..pattern.len().min(len - at)])?;
        }
        Ok(())
    }

    /// Copies `dst.len()` elements from element `offset` of `src` on; waits for the queue.
    ///
    /// # Errors
    /// A range outside the buffer, or a fault of an earlier op.
    fn read<T: Element>(
        &self,
        src: &Self::Buffer<T>,
        offset: usize,
        dst: &mut [T],
    ) -> Result<(), Self::Error>;

    /// Waits for the queue.
    ///
    /// # Errors
    /// A fault of an earlier op.
    fn synchronize(&self) -> Result<(), Self::Error>;

    /// What is free of the device's memory when everything that was queued is done; none where nobody says.
    ///
    /// # Errors
    /// A failure of the device.
    fn memory(&self) -> Result<Option<Memory>, Self::Error> {
        Ok(None)
    }

    /// Replaces elements of several buffers: as little work for queue and bus as the backend can make of it.
    ///
    /// # Errors
    /// A range outside its buffer, or a fault of an earlier op.
    fn patch(&self, patches: Vec<Patch<'_, Self>>) -> Result<(), Self::Error> {
        for Patch { dst, parts } in patches {
            for (offset, words) in parts {
                match words {
                    Words::Host(words) => self.write(dst, offset, &words)?,
                    Words::Chosen(src, place) => {
                        let mut word = [0];
                        self.read(src, place, &mut word)?;
                        let [word] = word.map(|word| if word == u32::MAX { 0 } else { word });
                        self.write(dst, offset, &[word])?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Queues a copy of the first `len` elements of `src` to the host, as they are when the queue gets there.
    ///
    /// # Errors
    /// A range outside the buffer, or a fault of an earlier op.
    fn read_later(&self, src: &Self::Buffer<u32>, len: usize) -> Result<Self::Later, Self::Error>;

    /// What [`Self::read_later`] copied; waits for what was queued before it, and for nothing else.
    ///
    /// # Errors
    /// A fault of an earlier op.
    fn wait(&self, later: Self::Later) -> Result<Vec<u32>, Self::Error>;

    /// Whether ops are queued and run while the host goes on, so that the next step is best queued before the results of the last
    /// one are read.
    fn runs_behind(&self) -> bool {
        false
    }

    /// Runs `step`. A backend with graphs or command buffers may record it at a call with `key` and replay it at later ones with
    /// the same `recordings`, without calling it: the step must then launch the same ops over the same buffers for equal keys, and
    /// take everything else from device memory. `recordings` is for the steps of one owner of buffers, and is of no use once one
    /// of these is gone. The step calls ops alone: no memory is allocated, written or read in it. What it checks of a planned
    /// batch, the plan was checked for already.
    ///
    /// # Errors
    /// Those of `step`.
    fn record(
        &self,
        recordings: &mut Self::Recordings,
        key: StepKey,
        step: impl FnOnce(&Self) -> Result<(), StepError<Self::Error>>,
    ) -> Result<(), StepError<Self::Error>> {
        let _ = (recordings, key);
        step(self)
    }

    /// Rows of a table; see [`ops::Embed`].
    ///
    /// # Errors
    /// A failure of the device.
    fn embed(&self, op: ops::Embed<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::RmsNorm`].
    ///
    /// # Errors
    /// A failure of the device.
    fn rms_norm(&self, op: ops::RmsNorm<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::AddRmsNorm`].
    ///
    /// # Errors
    /// A failure of the device.
    fn add_rms_norm(&self, mut op: ops::AddRmsNorm<'_, Self>) -> Result<(), Self::Error> {
        self.add(op.add())?;
        self.rms_norm(op.norm())
    }

    /// See [`ops::LayerNorm`].
    ///
    /// # Errors
    /// A failure of the device.
    fn layer_norm(&self, op: ops::LayerNorm<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::Linear`].
    ///
    /// # Errors
    /// A failure of the device.
    fn linear(&self, op: ops::Linear<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::Rope`].
    ///
    /// # Errors
    /// A failure of the device.
    fn rope(&self, op: ops::Rope<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::Activate`].
    ///
    /// # Errors
    /// A failure of the device.
    fn activate(&self, op: ops::Activate<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::Add`].
    ///
    /// # Errors
    /// A failure of the device.
    fn add(&self, op: ops::Add<'_, Self>) -> Result<(), Self::Error>;

    /// Words that [`ops::PlanAttend`] writes; 0: it does nothing.
    fn attend_plan_words(&self) -> usize {
        0
    }

    /// See [`ops::PlanAttend`].
    ///
    /// # Errors
    /// A failure of the device.
    fn plan_attend(&self, op: ops::PlanAttend<'_, Self>) -> Result<(), Self::Error> {
        let _ = op.into_parts();
        Ok(())
    }

    /// See [`ops::Attend`].
    ///
    /// # Errors
    /// A failure of the device.
    fn attend(&self, op: ops::Attend<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::Append`].
    ///
    /// # Errors
    /// A failure of the device.
    fn append(&self, op: ops::Append<'_, Self>) -> Result<(), Self::Error>;

    /// Zeroes pages that are handed out again; see [`ops::ClearPages`].
    ///
    /// # Errors
    /// A failure of the device.
    fn clear_pages(&self, op: ops::ClearPages<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::Gather`].
    ///
    /// # Errors
    /// A failure of the device.
    fn gather(&self, op: ops::Gather<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::Argmax`].
    ///
    /// # Errors
    /// A failure of the device.
    fn argmax(&self, op: ops::Argmax<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::TopK`].
    ///
    /// # Errors
    /// A failure of the device.
    fn top_k(&self, op: ops::TopK<'_, Self>) -> Result<(), Self::Error>;

    /// See [`ops::Sample`].
    ///
    /// # Errors
    /// A failure of the device.
    fn sample(&self, op: ops::Sample<'_, Self>) -> Result<(), Self::Error>;
}
