//! Arrays in device memory.

use core::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DriverError, sys};
use kivi_kernels::{Buffer, Element};

use crate::CudaError;

/// An array of a [`crate::Cuda`]. Its memory is given back in the order of the queue: after everything that was queued
/// before it is dropped.
pub struct CudaBuffer<T> {
    bytes: CudaSlice<u8>,
    ptr: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Buffer<T> for CudaBuffer<T> {
    fn len(&self) -> usize {
        self.len
    }
}

impl<T: Element> CudaBuffer<T> {
    /// Allocates; the contents are whatever was there.
    pub(crate) fn uninit(stream: &Arc<CudaStream>, len: usize) -> Result<Self, CudaError> {
        let bytes = len as u128 * size_of::<T>() as u128;
        let fits = usize::try_from(bytes).ok().filter(|&bytes| isize::try_from(bytes).is_ok());
        let Some(size) = fits else { return Err(out_of_memory(stream, bytes)) };
        // The driver allocates no empty arrays.
        // SAFETY: `zeros` and `upload` fill all of it before the buffer is handed out.
        let slice = unsafe { stream.alloc::<u8>(size.max(1)) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(stream, bytes),
            _ => CudaError::driver("allocation")(error),
        })?;
        let ptr = slice.device_ptr(stream).0;
        Ok(Self { bytes: slice, ptr, len, element: PhantomData })
    }

    /// An array of zeros.
    pub(crate) fn zeros(stream: &Arc<CudaStream>, len: usize) -> Result<Self, CudaError> {
        let mut buffer = Self::uninit(stream, len)?;
        stream.memset_zeros(&mut buffer.bytes).map_err(CudaError::driver("zeroing a buffer"))?;
        Ok(buffer)
    }

    /// Where element `offset` is on the device.
    pub(crate) fn at(&self, offset: usize) -> u64 {
        self.ptr + (offset * size_of::<T>()) as u64
    }

    /// Replaces the elements from `offset` on. When it returns, `src` may change.
    pub(crate) fn write(
        &mut self,
        stream: &Arc<CudaStream>,
        offset: usize,
        src: &[T],
    ) -> Result<(), CudaError> {
        let range = self.range(offset, src.len())?;
        if src.is_empty() {
            return Ok(());
        }
        let mut dst = self.bytes.slice_mut(range);
        let src: &[u8] = bytemuck::cast_slice(src);
        let copy = stream.memcpy_htod(src, &mut dst);
        // The driver takes a copy of pageable memory at once, but reads pinned memory when the queue gets there.
        let wait = if is_pinned(src) { stream.synchronize() } else { Ok(()) };
        copy.and(wait).map_err(CudaError::driver("copy to the device"))
    }

    /// Writes `pattern` again and again, until the buffer is full.
    pub(crate) fn repeat(&mut self, stream: &Arc<CudaStream>, pattern: &[T]) -> Result<(), CudaError> {
        let first = pattern.len().min(self.len);
        self.write(stream, 0, &pattern[..first])?;
        let size = self.len * size_of::<T>();
        let mut filled = first * size_of::<T>();
        // Each copy doubles what is there: a multiple of the pattern, but for the last.
        while filled > 0 && filled < size {
            let n = filled.min(size - filled);
            let (from, mut to) = self.bytes.split_at_mut(filled);
            let copy = stream.memcpy_dtod(&from.slice(..n), &mut to.slice_mut(..n));
            copy.map_err(CudaError::driver("copy on the device"))?;
            filled += n;
        }
        Ok(())
    }

    /// Copies the elements from `offset` on to `dst`, after everything that is queued.
    pub(crate) fn read(
        &self,
        stream: &Arc<CudaStream>,
        offset: usize,
        dst: &mut [T],
    ) -> Result<(), CudaError> {
        let range = self.range(offset, dst.len())?;
        let copy: Result<(), DriverError> = if dst.is_empty() {
            Ok(())
        } else {
            stream.memcpy_dtoh(&self.bytes.slice(range), bytemuck::cast_slice_mut::<T, u8>(dst))
        };
        // Always: until the queue is empty, the copy may not have been made.
        copy.and(stream.synchronize()).map_err(CudaError::driver("copy from the device"))
    }

    /// The bytes of `count` elements from `offset` on.
    fn range(&self, offset: usize, count: usize) -> Result<core::ops::Range<usize>, CudaError> {
        let end = offset.checked_add(count).filter(|&end| end <= self.len);
        let end = end.ok_or(CudaError::Range { offset, count, len: self.len })?;
        Ok(offset * size_of::<T>()..end * size_of::<T>())
    }
}

fn out_of_memory(stream: &CudaStream, bytes: u128) -> CudaError {
    let (free, total) = stream.context().mem_get_info().unwrap_or_default();
    CudaError::OutOfMemory { bytes, free, total }
}

/// Whether the driver knows this host memory, so that a copy from it may still run when the call has returned.
fn is_pinned(src: &[u8]) -> bool {
    let mut kind = 0_u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: the attribute is a 32-bit number, for which `kind` has room; the driver looks `src` up in its tables and
    // accepts any address.
    let result = unsafe {
        sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, src.as_ptr() as sys::CUdeviceptr)
    };
    result == sys::CUresult::CUDA_SUCCESS
}
