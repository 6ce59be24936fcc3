//! Arrays in device memory.

use core::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdeviceptr, CUstream};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DriverError, result};
use kivi_kernels::{Buffer, Element};

use crate::CudaError;
use crate::staging::Staging;

/// An array in device memory, for the ops of one [`crate::Cuda`]: of its own ([`kivi_kernels::Backend::zeros`]), a slice of
/// cudarc's ([`crate::Cuda::adopt`]), or memory of somebody else ([`Self::from_raw`]).
///
/// The first two are given back in the order of the queue: after everything that was queued before they are dropped.
pub struct CudaBuffer<T> {
    ptr: CUdeviceptr,
    len: usize,
    /// What owns the memory; nothing, if somebody else does.
    slice: Option<CudaSlice<T>>,
    /// Whether it is [`Self::is_settled`].
    settled: bool,
    element: PhantomData<T>,
}

impl<T: Element> Buffer<T> for CudaBuffer<T> {
    fn len(&self) -> usize {
        self.len
    }
}

impl<T: Element> CudaBuffer<T> {
    /// The `len` elements at address `ptr`, which stay somebody else's: they are never freed.
    ///
    /// # Safety
    /// Until the last op with this buffer is done, on the device, the memory must be there, in the context of the
    /// [`crate::Cuda`] whose ops get it, be aligned to 16 bytes, and be used by nothing else, but for reads while ops only
    /// read it. Ops wait for nothing but what is in their stream: what other streams do before and after is for the
    /// caller to order.
    pub unsafe fn from_raw(ptr: CUdeviceptr, len: usize) -> Self {
        Self { ptr, len, slice: None, settled: false, element: PhantomData }
    }

    /// A slice of cudarc's in the stream of the queue; the stream waits for what other streams do with the slice.
    pub(crate) fn from_slice(mut slice: CudaSlice<T>) -> Self {
        let (ptr, len) = (address(&mut slice), slice.len());
        Self { ptr, len, slice: Some(slice), settled: false, element: PhantomData }
    }

    /// The memory as a slice of cudarc's, whose next use in another stream waits for what is queued now; none if the buffer
    /// is [`Self::from_raw`].
    pub fn into_slice(self) -> Option<CudaSlice<T>> {
        let mut slice = self.slice?;
        address(&mut slice);
        Some(slice)
    }

    /// Address of the first element. A product reads weights of this crate's own memory while the launch before it may still
    /// run: a buffer that a launch writes by this address is no weight until the stream was waited for.
    pub fn device_ptr(&self) -> CUdeviceptr {
        self.ptr
    }

    /// Allocates; the contents are whatever was there.
    pub(crate) fn uninit(stream: &Arc<CudaStream>, len: usize) -> Result<Self, CudaError> {
        let bytes = len as u128 * size_of::<T>() as u128;
        let fits = usize::try_from(bytes).ok().filter(|&bytes| isize::try_from(bytes).is_ok());
        let Some(size) = fits else { return Err(out_of_memory(stream, bytes)) };
        // The driver allocates no empty arrays.
        // SAFETY: the bytes are read when they have been written; any bytes are elements.
        let slice = unsafe { stream.alloc::<u8>(size.max(1)) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(stream, bytes),
            _ => CudaError::driver("allocation")(error),
        })?;
        // SAFETY: the allocation has `len` elements, and nobody else has it any more.
        let buffer = Self::from_slice(unsafe { stream.upgrade_device_ptr(slice.leak(), len) });
        Ok(Self { settled: true, ..buffer })
    }

    /// An array of zeros.
    pub(crate) fn zeros(stream: &Arc<CudaStream>, len: usize) -> Result<Self, CudaError> {
        let mut buffer = Self::uninit(stream, len)?;
        buffer.clear(stream)?;
        Ok(buffer)
    }

    /// Makes every element 0.
    pub(crate) fn clear(&mut self, stream: &CudaStream) -> Result<(), CudaError> {
        let size = self.len * size_of::<T>();
        let clear = |stream| {
            // SAFETY: the buffer has `size` bytes.
            if size > 0 { unsafe { result::memset_d8_async(self.ptr, 0, size, stream) } } else { Ok(()) }
        };
        bound(stream).and_then(clear).map_err(CudaError::driver("zeroing a buffer"))
    }

    /// Where element `offset` is on the device.
    pub(crate) fn at(&self, offset: usize) -> CUdeviceptr {
        self.ptr + (offset * size_of::<T>()) as CUdeviceptr
    }

    /// The same for a launch that writes there.
    pub(crate) fn at_mut(&mut self, offset: usize) -> CUdeviceptr {
        self.settled = false;
        self.at(offset)
    }

    /// Whether copies and memsets alone have written it, so that a kernel may read it before the launch before is done. Memory of
    /// others never is: who knows what writes it.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Replaces the elements from `offset` on. When it returns, `src` may change.
    pub(crate) fn write(&mut self, stream: &CudaStream, offset: usize, src: &[T]) -> Result<(), CudaError> {
        self.check(offset, src.len())?;
        if src.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is in the buffer; `src` is there until the driver has read it, see below.
        let copy = |stream| unsafe { result::memcpy_htod_async(self.at(offset), src, stream) };
        let copy = bound(stream).and_then(copy);
        // The driver takes a copy of pageable memory at once, but reads pinned memory when the queue gets there.
        let wait = if is_pinned(src) { stream.synchronize() } else { Ok(()) };
        copy.and(wait).map_err(CudaError::driver("copy to the device"))
    }

    /// The same by way of pinned memory.
    pub(crate) fn write_staged(
        &mut self,
        stream: &CudaStream,
        offset: usize,
        src: &[T],
        staging: &mut Staging,
    ) -> Result<(), CudaError> {
        self.check(offset, src.len())?;
        // SAFETY: the range is in the buffer, which is freed in the order of the stream.
        let copied = unsafe { staging.copy(stream, self.at(offset), bytemuck::cast_slice(src)) };
        copied.map_err(CudaError::driver("copy to the device"))
    }

    /// Writes `pattern` again and again, until the buffer is full.
    pub(crate) fn repeat(&mut self, stream: &CudaStream, pattern: &[T]) -> Result<(), CudaError> {
        let mut filled = pattern.len().min(self.len);
        self.write(stream, 0, &pattern[..filled])?;
        // Each copy doubles what is there: a multiple of the pattern, but for the last.
        while filled > 0 && filled < self.len {
            let n = filled.min(self.len - filled);
            let (from, to, size) = (self.at(0), self.at(filled), n * size_of::<T>());
            // SAFETY: both ranges are in the buffer, one after the other.
            let copy = |stream| unsafe { result::memcpy_dtod_async(to, from, size, stream) };
            bound(stream).and_then(copy).map_err(CudaError::driver("copy on the device"))?;
            filled += n;
        }
        Ok(())
    }

    /// Copies the elements from `offset` on to `dst`, after everything that is queued.
    pub(crate) fn read(&self, stream: &CudaStream, offset: usize, dst: &mut [T]) -> Result<(), CudaError> {
        self.check(offset, dst.len())?;
        let copy = |stream| match dst.len() {
            0 => Ok(()),
            // SAFETY: the range is in the buffer; `dst` is there until the queue is empty, see below.
            _ => unsafe { result::memcpy_dtoh_async(dst, self.at(offset), stream) },
        };
        // Always wait: until the queue is empty, the copy may not have been made.
        let copy = bound(stream).and_then(copy);
        copy.and(stream.synchronize()).map_err(CudaError::driver("copy from the device"))
    }

    /// Fails unless there are `count` elements from `offset` on.
    pub(crate) fn check(&self, offset: usize, count: usize) -> Result<(), CudaError> {
        let end = offset.checked_add(count).filter(|&end| end <= self.len);
        end.map(|_| ()).ok_or(CudaError::Range { offset, count, len: self.len })
    }
}

/// Where a slice lies. Its stream waits for what was done with it elsewhere; elsewhere waits for what its stream has to do.
fn address<T>(slice: &mut CudaSlice<T>) -> CUdeviceptr {
    let stream = Arc::clone(slice.stream());
    let (ptr, _recorded) = slice.device_ptr_mut(&stream);
    ptr
}

/// The stream for a call to the driver, which wants its context to be that of the thread.
fn bound(stream: &CudaStream) -> Result<CUstream, DriverError> {
    stream.context().bind_to_thread()?;
    Ok(stream.cu_stream())
}

fn out_of_memory(stream: &CudaStream, bytes: u128) -> CudaError {
    let (free, total) = stream.context().mem_get_info().unwrap_or_default();
    CudaError::OutOfMemory { bytes, free, total }
}

/// Whether the driver knows this host memory, so that a copy from it may still run when the call has returned.
fn is_pinned<T>(src: &[T]) -> bool {
    let mut kind = 0_u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: the attribute is a 32-bit number, for which `kind` has room; the driver looks `src` up in its tables and
    // accepts any address.
    let result = unsafe {
        sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, src.as_ptr() as sys::CUdeviceptr)
    };
    result == sys::CUresult::CUDA_SUCCESS
}
