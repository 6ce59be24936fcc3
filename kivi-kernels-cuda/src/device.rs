//! A CUDA device as a backend.

use core::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaStream};
use kivi_kernels::{Backend, Element, Spec, ops as op};

use crate::buffer::CudaBuffer;
use crate::jit::{Jit, Limits};
use crate::ops::DecodeScratch;
use crate::{Act, CudaError, ops, probe};

/// One stream of one CUDA device, with activations of type `A`.
///
/// With `KIVI_SYNC=1` in the environment every op waits until it is done, so that a fault carries the name of its kernel. With
/// `KIVI_NO_BULK=1` kernels are compiled as for a device before Hopper, without its copy engine.
pub struct Cuda<A> {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) jit: Jit,
    /// What the blocks of a decode step leave for each other.
    pub(crate) decode: DecodeScratch,
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
        let properties = properties(&context).map_err(CudaError::driver("the device's limits"))?;
        let no_bulk = is_set("KIVI_NO_BULK").then_some("-DKIVI_NO_BULK=1");
        let defines: Vec<&str> = [A::DEFINE].into_iter().chain(no_bulk).collect();
        let jit = Jit::new(&arch, properties.limits, &defines)?;
        let decode = DecodeScratch::new(&stream, properties.multiprocessors)?;
        let sync = is_set("KIVI_SYNC");
        Ok(Self { context, stream, jit, decode, sync, name, act: PhantomData })
    }
}

/// The architecture to compile for: the very one of the device, with its own features on Hopper.
fn arch(context: &CudaContext) -> Result<String, cudarc::driver::DriverError> {
    let major = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let feature = if (major, minor) == (9, 0) { "a" } else { "" };
    Ok(format!("sm_{major}{minor}{feature}"))
}

/// Whether a variable of the environment is 1.
fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| value == "1")
}

/// What launches depend on.
struct Properties {
    limits: Limits,
    multiprocessors: usize,
}

fn properties(context: &CudaContext) -> Result<Properties, cudarc::driver::DriverError> {
    let get = |attribute| Ok(context.attribute(attribute)? as usize);
    let limits = Limits {
        per_multiprocessor: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        per_block: get(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    };
    Ok(Properties { limits, multiprocessors: get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? })
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
