//! A CUDA device as a backend.

use core::marker::PhantomData;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUstream};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use kivi_kernels::{Backend, Element, Memory, Patch, Spec, StepError, StepKey, ops as op};

use crate::blas::Blas;
use crate::buffer::CudaBuffer;
use crate::graph::Recordings;
use crate::jit::{Jit, Limits};
use crate::landing::{Landing, Later};
use crate::ops::{Parcel, Scratch};
use crate::settled::Settled;
use crate::staging::{self, Staging};
use crate::{Act, CudaError, launch, ops, probe};

/// One stream of one CUDA device, with activations of type `A`.
///
/// Decode steps that come again are launched as one CUDA graph ([`Recordings`]), unless `KIVI_GRAPHS=0` is in the environment,
/// or the stream is the default one, which cannot be recorded. With `KIVI_SYNC=1` every op waits until it is done, so that a
/// fault carries the name of its kernel, and nothing is recorded. From compute capability 9.0 on a kernel is launched while the
/// one before it runs, and waits for it on the device, unless `KIVI_PDL=0` is in the environment.
pub struct Cuda<A> {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) jit: Jit,
    /// What the blocks of a decode step leave for each other.
    pub(crate) scratch: Scratch,
    pub(crate) multiprocessors: usize,
    /// cuBLASLt, loaded at the first product; none if it is not there.
    blas: OnceLock<Option<Blas>>,
    /// Most rows of products that are not cuBLASLt's.
    pub(crate) gemv_rows: u64,
    /// Most sequences times units whose attention is shared in small tiles.
    pub(crate) few_units: usize,
    /// For large copies to the device; none before the first.
    staging: Mutex<Option<Staging>>,
    /// For what steps are about; none before the first.
    parcel: Mutex<Option<Parcel>>,
    /// For what steps find, those that are free.
    landings: Mutex<Vec<Landing>>,
    /// Whether steps are recorded.
    pub(crate) graphs: bool,
    /// Whether each launch waits.
    pub(crate) sync: bool,
    /// Whether a kernel may start before the one before it is done.
    pub(crate) overlap: bool,
    /// What a step that is being recorded may read early.
    pub(crate) settled: Settled,
    name: String,
    act: PhantomData<A>,
}

impl<A: Act> Cuda<A> {
    /// Device `ordinal`, counted from 0, in a stream of its own. Kernels are compiled when they are first used.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`], [`CudaError::NoToolkit`], or a failure of the driver.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        let stream = primary(ordinal)?.new_stream();
        let cuda = Self::on_stream(stream.map_err(CudaError::driver("making a stream"))?)?;
        cuda.blas();
        Ok(cuda)
    }

    /// In a stream of the caller's: everything is queued there, in the order of the calls, and ordered against other streams
    /// only by what the caller does. The context stays as it is. Allocates [`crate::raw::scratch_words`] words; after that
    /// ops allocate nothing, except that a kernel's first use loads it ([`Self::prepare`]), the first product loads cuBLASLt with its
    /// workspace of 32 MiB, the first copy of 1 MiB to the device takes 32 MiB of pinned memory, and the first planned step
    /// 128 KiB of it and 64 KiB of the device (more where page tables are long).
    ///
    /// # Errors
    /// [`CudaError::NoToolkit`], [`CudaError::Foreign`] for cudarc's stream "per thread", or a failure of the driver.
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self, CudaError> {
        let properties = properties(stream.context())?;
        let scratch = CudaBuffer::zeros(&stream, Scratch::words(properties.multiprocessors))?;
        Self::build(stream, properties, scratch)
    }

    /// [`Self::on_stream`], with memory for scratch: [`crate::raw::scratch_words`] words of this stream, which are cleared.
    ///
    /// # Errors
    /// [`CudaError::Foreign`] if the slice is too short or of another stream, and those of [`Self::on_stream`].
    pub fn with_scratch(stream: Arc<CudaStream>, scratch: CudaSlice<u32>) -> Result<Self, CudaError> {
        if *scratch.stream() != stream {
            return Err(CudaError::Foreign("scratch belongs to another stream"));
        }
        let mut scratch = CudaBuffer::from_slice(scratch);
        scratch.clear(&stream)?;
        let properties = properties(stream.context())?;
        Self::build(stream, properties, scratch)
    }

    /// [`Self::on_stream`], for a stream that cudarc does not know, in the primary context of device `ordinal`; it is not
    /// destroyed. (`CUstream` is a pointer: cast that of another version of cudarc. For other contexts, cudarc has
    /// `CudaContext::from_raw_context` and `wrap_borrowed_stream`.)
    ///
    /// # Errors
    /// [`CudaError::NoDevice`], and those of [`Self::on_stream`].
    ///
    /// # Safety
    /// The stream must be of that context, and must be there until this value and its buffers are dropped. cudarc does not
    /// see this value's use of slices: the caller orders it against other streams.
    pub unsafe fn on_raw_stream(ordinal: usize, stream: CUstream) -> Result<Self, CudaError> {
        let context = primary(ordinal)?;
        // SAFETY: as the caller says.
        Self::on_stream(unsafe { context.wrap_borrowed_stream(stream) })
    }

    /// The stream that everything is queued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// cuBLASLt, if it is there.
    pub(crate) fn blas(&self) -> Option<&Blas> {
        let load = || {
            let why = match Blas::new(&self.stream, A::DTYPE) {
                Ok(blas) => return Some(blas),
                Err(why) => why,
            };
            tracing::warn!("no cuBLASLt, prompts will be slow: {why}");
            None
        };
        self.blas.get_or_init(load).as_ref()
    }

    /// Where what steps are about is on its way.
    pub(crate) fn parcel(&self) -> MutexGuard<'_, Option<Parcel>> {
        self.parcel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where what steps find can go.
    pub(crate) fn landings(&self) -> MutexGuard<'_, Vec<Landing>> {
        self.landings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces elements, by way of pinned memory if there are many.
    fn copy<T: Element>(&self, dst: &mut CudaBuffer<T>, offset: usize, src: &[T]) -> Result<(), CudaError> {
        if size_of_val(src) < staging::LARGE {
            return dst.write(&self.stream, offset, src);
        }
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if staging.is_none() {
            *staging = Staging::new(&self.context).ok();
        }
        match staging.as_mut() {
            Some(staging) => dst.write_staged(&self.stream, offset, src, staging),
            None => dst.write(&self.stream, offset, src),
        }
    }

    fn build(
        stream: Arc<CudaStream>,
        properties: Properties,
        scratch: CudaBuffer<u32>,
    ) -> Result<Self, CudaError> {
        // CU_STREAM_PER_THREAD.
        if stream.cu_stream() as usize == 2 {
            return Err(CudaError::Foreign("the stream is another one in each thread, not one queue"));
        }
        let context = Arc::clone(stream.context());
        let name = context.name().map_err(CudaError::driver("the device's name"))?;
        let jit = Jit::new(&properties.arch, properties.limits, &[A::DEFINE])?;
        let scratch = Scratch::new(scratch, properties.multiprocessors)?;
        let sync = is("KIVI_SYNC", "1");
        // The default stream, which has no number, or 1, is in order with other streams: it is neither recorded nor overlapped.
        let plain = sync || stream.cu_stream() as usize <= 1;
        let graphs = !plain && !is("KIVI_GRAPHS", "0");
        let overlap =
            !plain && !is("KIVI_PDL", "0") && launch::can_overlap(properties.major, probe::driver_version());
        let multiprocessors = properties.multiprocessors;
        let (blas, gemv_rows) = (OnceLock::new(), asked("KIVI_GEMV_ROWS").unwrap_or(4));
        let few_units = asked("KIVI_FEW_UNITS").unwrap_or(multiprocessors);
        let (staging, parcel, landings, act) =
            (Mutex::default(), Mutex::default(), Mutex::default(), PhantomData);
        Ok(Self {
            context,
            stream,
            jit,
            scratch,
            multiprocessors,
            blas,
            gemv_rows,
            few_units,
            staging,
            parcel,
            landings,
            graphs,
            sync,
            overlap,
            settled: Settled::default(),
            name,
            act,
        })
    }
}

/// The context of device `ordinal` that every library shares.
fn primary(ordinal: usize) -> Result<Arc<CudaContext>, CudaError> {
    probe::device(ordinal)?;
    CudaContext::new(ordinal).map_err(CudaError::driver("starting the device"))
}

/// The architecture to compile for: the very one of the device, with its own features on Hopper.
fn arch(major: usize, minor: usize) -> String {
    let feature = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{feature}")
}

/// What a variable of the environment asks for, to measure and to test: `KIVI_GEMV_ROWS`, most rows of products by `gemv.cu` where
/// cuBLASLt could make them; `KIVI_FEW_UNITS`, most sequences times units whose attention is shared in small tiles.
fn asked<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var_os(name)?;
    let found = text.to_str().and_then(|text| text.parse().ok());
    if found.is_none() {
        tracing::warn!("{name}: expected a number of 0 or more, found {text:?}; it is ignored");
    }
    found
}

/// Whether a variable of the environment has this value.
fn is(name: &str, value: &str) -> bool {
    std::env::var_os(name).is_some_and(|found| found == value)
}

/// What kernels and launches depend on.
struct Properties {
    arch: String,
    /// Of the compute capability.
    major: usize,
    limits: Limits,
    multiprocessors: usize,
}

fn properties(context: &CudaContext) -> Result<Properties, CudaError> {
    let get = |attribute| {
        let value = context.attribute(attribute).map_err(CudaError::driver("the device's limits"))?;
        Ok(value as usize)
    };
    let limits = Limits {
        per_multiprocessor: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        per_block: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    };
    let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Properties {
        arch: arch(major, minor),
        major,
        limits,
        multiprocessors: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

/// Ops that are functions of [`ops`].
macro_rules! run {
    ($($op:ident $struct:ident;)*) => {$(
        fn $op(&self, op: op::$struct<'_, Self>) -> Result<(), CudaError> {
            ops::$op(self, op.into_parts())
        }
    )*};
}

impl<A: Act> Backend for Cuda<A> {
    type Act = A;
    type Buffer<T: Element> = CudaBuffer<T>;
    type Error = CudaError;
    type Recordings = Recordings;
    type Later = Later;

    fn name(&self) -> &str {
        &self.name
    }

    fn supports(&self, spec: &Spec) -> bool {
        spec.act == A::DTYPE
    }

    fn zeros<T: Element>(&self, len: usize) -> Result<CudaBuffer<T>, CudaError> {
        CudaBuffer::zeros(&self.stream, len)
    }

    fn upload<T: Element>(&self, src: &[T]) -> Result<CudaBuffer<T>, CudaError> {
        let mut buffer = CudaBuffer::uninit(&self.stream, src.len())?;
        self.copy(&mut buffer, 0, src)?;
        Ok(buffer)
    }

    fn write<T: Element>(&self, dst: &mut CudaBuffer<T>, offset: usize, src: &[T]) -> Result<(), CudaError> {
        self.copy(dst, offset, src)
    }

    fn repeat<T: Element>(&self, dst: &mut CudaBuffer<T>, pattern: &[T]) -> Result<(), CudaError> {
        dst.repeat(&self.stream, pattern)
    }

    fn read<T: Element>(&self, src: &CudaBuffer<T>, offset: usize, dst: &mut [T]) -> Result<(), CudaError> {
        src.read(&self.stream, offset, dst)
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(CudaError::driver("waiting for the queue"))
    }

    fn memory(&self) -> Result<Option<Memory>, CudaError> {
        self.synchronize()?;
        let memory = self.context.mem_get_info().map_err(CudaError::driver("asking for free memory"));
        memory.map(|(free, total)| Some(Memory { free, total }))
    }

    fn attend_plan_words(&self) -> usize {
        ops::plan_words(self.scratch.multiprocessors())
    }

    fn patch(&self, patches: Vec<Patch<'_, Self>>) -> Result<(), CudaError> {
        ops::patch(self, patches)
    }

    fn read_later(&self, src: &CudaBuffer<u32>, len: usize) -> Result<Later, CudaError> {
        self.send_back(src, len)
    }

    fn wait(&self, later: Later) -> Result<Vec<u32>, CudaError> {
        self.arrival(later)
    }

    fn runs_behind(&self) -> bool {
        !self.sync
    }

    fn record(
        &self,
        recordings: &mut Recordings,
        key: StepKey,
        step: impl FnOnce(&Self) -> Result<(), StepError<CudaError>>,
    ) -> Result<(), StepError<CudaError>> {
        self.run_step(recordings, key, || step(self))
    }

    run! {
        embed Embed;
        rms_norm RmsNorm;
        add_rms_norm AddRmsNorm;
        layer_norm LayerNorm;
        linear Linear;
        rope Rope;
        activate Activate;
        add Add;
        plan_attend PlanAttend;
        attend Attend;
        append Append;
        clear_pages ClearPages;
        gather Gather;
        argmax Argmax;
        top_k TopK;
        sample Sample;
    }
}
