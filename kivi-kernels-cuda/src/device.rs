//! A CUDA device as a backend.

use core::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaStream};
use kivi_kernels::{Backend, Element, Spec, ops as op};

use crate::buffer::CudaBuffer;
use crate::jit::Jit;
use crate::{Act, CudaError, ops, probe};

/// One stream of one CUDA device, with activations of type `A`.
///
/// With `KIVI_SYNC=1` in the environment every op waits until it is done, so that a fault carries the name of its kernel.
pub struct Cuda<A> {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) jit: Jit,
    /// Whether each launch waits.
    pub(crate) sync: bool,
    name: String,
    act: PhantomData<A>,
}

impl<A: Act> Cuda<A> {
    /// Device `ordinal`, counted from 0, in a stream of its own. Kernels are compiled when they are first used.
    ///
    /// # Errors
    /// [`CudaError::NoDevice`], [`CudaError::NoToolkit`], or a failure of the driver.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        probe::device(ordinal)?;
        let start = CudaError::driver("starting the device");
        let context = CudaContext::new(ordinal).map_err(start)?;
        // SAFETY: there is one stream, so everything is ordered by it, frees too; no buffer exists yet.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(CudaError::driver("making a stream"))?;
        let name = context.name().map_err(CudaError::driver("the device's name"))?;
        let arch = arch(&context).map_err(CudaError::driver("the device's architecture"))?;
        let jit = Jit::new(&arch, &[A::DEFINE])?;
        let sync = std::env::var_os("KIVI_SYNC").is_some_and(|value| value == "1");
        Ok(Self { context, stream, jit, sync, name, act: PhantomData })
    }
}

/// The architecture to compile for: the very one of the device, with its own features on Hopper.
fn arch(context: &CudaContext) -> Result<String, cudarc::driver::DriverError> {
    let major = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let feature = if (major, minor) == (9, 0) { "a" } else { "" };
    Ok(format!("sm_{major}{minor}{feature}"))
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
        buffer.write(&self.stream, 0, src)?;
        Ok(buffer)
    }

    fn write<T: Element>(&self, dst: &mut CudaBuffer<T>, offset: usize, src: &[T]) -> Result<(), CudaError> {
        dst.write(&self.stream, offset, src)
    }

    fn read<T: Element>(&self, src: &CudaBuffer<T>, offset: usize, dst: &mut [T]) -> Result<(), CudaError> {
        src.read(&self.stream, offset, dst)
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(CudaError::driver("waiting for the queue"))
    }

    run! {
        embed Embed;
        rms_norm RmsNorm;
        layer_norm LayerNorm;
        linear Linear;
        rope Rope;
        activate Activate;
        add Add;
        attend Attend;
        append Append;
        clear_pages ClearPages;
        gather Gather;
        argmax Argmax;
        top_k TopK;
    }
}
