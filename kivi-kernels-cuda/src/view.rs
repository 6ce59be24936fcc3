//! Memory of an engine that uses cudarc, as operands of ops.

use core::ops::{Deref, DerefMut};
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceSlice, SyncOnDrop};
use kivi_kernels::Element;

use crate::device::Cuda;
use crate::{Act, CudaBuffer, CudaError};

/// A part of a slice of cudarc's that ops read.
///
/// When it is dropped, cudarc learns that the slice is read up to there: other streams wait before they write it.
pub struct View<'a, T> {
    buffer: CudaBuffer<T>,
    _read: SyncOnDrop<'a>,
}

/// A part of a slice of cudarc's that ops write; when it is dropped, other streams wait for what is queued.
pub struct ViewMut<'a, T> {
    buffer: CudaBuffer<T>,
    _written: SyncOnDrop<'a>,
}

impl<T> Deref for View<'_, T> {
    type Target = CudaBuffer<T>;

    fn deref(&self) -> &CudaBuffer<T> {
        &self.buffer
    }
}

impl<T> Deref for ViewMut<'_, T> {
    type Target = CudaBuffer<T>;

    fn deref(&self) -> &CudaBuffer<T> {
        &self.buffer
    }
}

impl<T> DerefMut for ViewMut<'_, T> {
    fn deref_mut(&mut self) -> &mut CudaBuffer<T> {
        &mut self.buffer
    }
}

impl<A: Act> Cuda<A> {
    /// `slice` as a buffer, which frees it as cudarc does; [`CudaBuffer::into_slice`] is the way back.
    ///
    /// # Errors
    /// [`CudaError::Foreign`] if the slice belongs to another stream, or is not aligned to 16 bytes.
    pub fn adopt<T: Element>(&self, slice: CudaSlice<T>) -> Result<CudaBuffer<T>, CudaError> {
        let stream = Arc::clone(slice.stream());
        let buffer = CudaBuffer::from_slice(slice);
        self.check(&stream, buffer.device_ptr())?;
        Ok(buffer)
    }

    /// `view` as a buffer that is only read.
    ///
    /// # Errors
    /// [`CudaError::Foreign`] if its slice belongs to another stream, or the view is not aligned to 16 bytes.
    pub fn view<'a, T: Element>(&'a self, view: CudaView<'a, T>) -> Result<View<'a, T>, CudaError> {
        let (stream, len) = (Arc::clone(view.stream()), view.len());
        let (ptr, read) = view.view_ptr(&self.stream);
        self.check(&stream, ptr)?;
        // SAFETY: the slice is borrowed for `'a`, and freed in this very stream, after all that is queued until then. No one
        // gets the buffer itself, only references that end with `'a`.
        Ok(View { buffer: unsafe { CudaBuffer::from_raw(ptr, len) }, _read: read })
    }

    /// `view` as a buffer that is written.
    ///
    /// # Errors
    /// [`CudaError::Foreign`] if its slice belongs to another stream, or the view is not aligned to 16 bytes.
    ///
    /// # Safety
    /// The buffer must stay where it is: not be swapped or replaced by way of the reference to it, which would let it
    /// outlive the slice.
    pub unsafe fn view_mut<'a, T: Element>(
        &'a self,
        view: CudaViewMut<'a, T>,
    ) -> Result<ViewMut<'a, T>, CudaError> {
        let (stream, len) = (Arc::clone(view.stream()), view.len());
        let (ptr, written) = view.view_ptr_mut(&self.stream);
        self.check(&stream, ptr)?;
        // SAFETY: as in `view`; that no one takes the buffer is up to the caller.
        Ok(ViewMut { buffer: unsafe { CudaBuffer::from_raw(ptr, len) }, _written: written })
    }

    /// Fails unless the memory is of the queue, whose order is all that keeps it from being freed or changed too early, and
    /// aligned as kernels expect.
    fn check(&self, stream: &CudaStream, ptr: CUdeviceptr) -> Result<(), CudaError> {
        if *stream != *self.stream {
            return Err(CudaError::Foreign("its slice belongs to another stream than that of the ops"));
        }
        if ptr.is_multiple_of(16) { Ok(()) } else { Err(CudaError::Foreign("it is not aligned to 16 bytes")) }
    }
}
