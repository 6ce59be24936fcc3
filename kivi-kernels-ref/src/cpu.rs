//! The CPU as a backend.

use core::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use kivi_kernels::{Backend, Buffer, DType, Element, ErrorKind, KernelError, Spec, ops};

use crate::{Accum, oracle};

/// What can go wrong on the CPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The allocator refused.
    #[error("out of memory: {len} elements of {dtype} asked for")]
    OutOfMemory {
        /// Elements asked for.
        len: usize,
        /// Their type.
        dtype: &'static str,
    },
    /// A copy that does not lie within its buffer.
    #[error("copy of {count} elements at {offset} does not fit a buffer of {len}")]
    Range {
        /// First element.
        offset: usize,
        /// Elements to copy.
        count: usize,
        /// Elements of the buffer.
        len: usize,
    },
}

impl KernelError for CpuError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            Self::Range { .. } => ErrorKind::Other,
        }
    }
}

/// An array of a [`Cpu`].
pub struct CpuBuffer<T>(pub(crate) Vec<T>, #[expect(dead_code, reason = "counts until it is dropped")] Tally);

impl<T: Element> Buffer<T> for CpuBuffer<T> {
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Bytes that count as allocated for as long as this lives.
struct Tally {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How a [`Cpu`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The best there is for the type.
    Backend,
    /// The oracle's loops, rounded where kernels for this activation type round.
    Yardstick(Option<DType>),
}

/// The CPU, computing in `A`: `Cpu<f64>` is the oracle, `Cpu<f32>` the CPU backend.
pub struct Cpu<A> {
    mode: Mode,
    allocated: Arc<AtomicUsize>,
    accum: PhantomData<A>,
}

impl<A: Accum> Default for Cpu<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Accum> Cpu<A> {
    /// The backend: the oracle in f64, fast in f32.
    pub fn new() -> Self {
        Self::with_mode(Mode::Backend)
    }

    fn with_mode(mode: Mode) -> Self {
        Self { mode, allocated: Arc::default(), accum: PhantomData }
    }

    /// Bytes of all live buffers.
    pub fn allocated_bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Whether this runs the oracle's loops to measure what f32 and rounding cost.
    pub(crate) fn is_yardstick(&self) -> bool {
        matches!(self.mode, Mode::Yardstick(_))
    }

    /// `x` as an operand of a matrix product: rounded to the significand of the yardstick's type. The exponent is
    /// not limited, because kernels normalise these operands by a power of two.
    pub(crate) fn operand(&self, x: A) -> A {
        let Mode::Yardstick(Some(dtype)) = self.mode else { return x };
        let x = x.to_f64();
        if x == 0.0 || !x.is_finite() {
            return A::from_f64(x);
        }
        let power = x.abs().log2().floor().exp2();
        A::from_f64(round(dtype, x / power) * power)
    }

    /// `x` as an element of an output: rounded to the yardstick's type.
    pub(crate) fn output(&self, x: A) -> A {
        let Mode::Yardstick(Some(dtype)) = self.mode else { return x };
        A::from_f64(round(dtype, x.to_f64()))
    }

    fn buffer<T: Element>(&self, elements: Vec<T>) -> CpuBuffer<T> {
        let bytes = size_of_val(elements.as_slice());
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
        CpuBuffer(elements, Tally { bytes, total: Arc::clone(&self.allocated) })
    }
}

impl Cpu<f32> {
    /// The oracle's own loops in f32, with operands of products and outputs rounded to `rounding` (f16 or bf16)
    /// where asked for. `docs/numerics.md` names the points.
    pub fn yardstick(rounding: Option<DType>) -> Self {
        Self::with_mode(Mode::Yardstick(rounding))
    }
}

fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(x).to_f64(),
        DType::Bf16 => bf16::from_f64(x).to_f64(),
        DType::F32 => f64::from(x as f32),
        DType::F64 | DType::U32 => x,
    }
}

/// The part of `len` elements that `count` elements at `offset` are.
fn range(offset: usize, count: usize, len: usize) -> Result<core::ops::Range<usize>, CpuError> {
    let end = offset.checked_add(count).filter(|&end| end <= len);
    end.map(|end| offset..end).ok_or(CpuError::Range { offset, count, len })
}

/// An op that cannot fail.
macro_rules! run {
    ($($op:ident $struct:ident = $run:path;)*) => {$(
        fn $op(&self, op: ops::$struct<'_, Self>) -> Result<(), CpuError> {
            $run(self, op.into_parts());
            Ok(())
        }
    )*};
}

impl<A: Accum> Backend for Cpu<A> {
    type Act = A;
    type Buffer<T: Element> = CpuBuffer<T>;
    type Error = CpuError;
    type Recordings = ();
    type Later = Vec<u32>;

    fn name(&self) -> &str {
        match (self.mode, A::DTYPE) {
            (Mode::Yardstick(_), _) => "yardstick",
            (Mode::Backend, DType::F64) => "oracle",
            (Mode::Backend, _) => "cpu",
        }
    }

    fn supports(&self, _spec: &Spec) -> bool {
        true
    }

    fn zeros<T: Element>(&self, len: usize) -> Result<CpuBuffer<T>, CpuError> {
        // Zeroed by the system when first touched, not here; and a refusal is an error, not the end.
        let zeros = bytemuck::allocation::try_zeroed_vec(len);
        let elements = zeros.map_err(|()| CpuError::OutOfMemory { len, dtype: T::DTYPE.name() })?;
        Ok(self.buffer(elements))
    }

    fn upload<T: Element>(&self, src: &[T]) -> Result<CpuBuffer<T>, CpuError> {
        let mut buffer = self.zeros(src.len())?;
        buffer.0.copy_from_slice(src);
        Ok(buffer)
    }

    fn write<T: Element>(&self, dst: &mut CpuBuffer<T>, offset: usize, src: &[T]) -> Result<(), CpuError> {
        let range = range(offset, src.len(), dst.0.len())?;
        dst.0[range].copy_from_slice(src);
        Ok(())
    }

    fn read<T: Element>(&self, src: &CpuBuffer<T>, offset: usize, dst: &mut [T]) -> Result<(), CpuError> {
        let range = range(offset, dst.len(), src.0.len())?;
        dst.copy_from_slice(&src.0[range]);
        Ok(())
    }

    fn synchronize(&self) -> Result<(), CpuError> {
        Ok(())
    }

    fn read_later(&self, src: &CpuBuffer<u32>, len: usize) -> Result<Vec<u32>, CpuError> {
        Ok(src.0[range(0, len, src.0.len())?].to_vec())
    }

    fn wait(&self, later: Vec<u32>) -> Result<Vec<u32>, CpuError> {
        Ok(later)
    }

    run! {
        embed Embed = oracle::embed;
        rms_norm RmsNorm = oracle::rms_norm;
        layer_norm LayerNorm = oracle::layer_norm;
        linear Linear = A::linear;
        rope Rope = oracle::rope;
        activate Activate = oracle::activate;
        add Add = oracle::add;
        attend Attend = A::attend;
        append Append = oracle::append;
        clear_pages ClearPages = oracle::clear_pages;
        gather Gather = oracle::gather;
        argmax Argmax = oracle::argmax;
        top_k TopK = oracle::top_k;
        sample Sample = A::sample;
    }
}
