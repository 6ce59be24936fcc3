//! Large copies to the device: through pinned memory, a piece being copied to it while the piece before is on its way.

use std::sync::Arc;
use std::thread;

use cudarc::driver::{CudaContext, CudaStream, DriverError, HostSlice, PinnedHostSlice, result};

/// Bytes of a piece.
const PIECE: usize = 16 << 20;
/// Most threads that copy a piece, and the least bytes for each: reading a mapped file is slower than the bus.
const MOST_THREADS: usize = 8;
const LEAST: usize = 1 << 20;

/// Copies of at least this many bytes are worth it.
pub(crate) const LARGE: usize = 1 << 20;

/// Two pieces of pinned memory.
pub(crate) struct Staging {
    pieces: [PinnedHostSlice<u8>; 2],
}

impl Staging {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        // SAFETY: a piece is written before it is copied.
        let piece = || unsafe { context.alloc_pinned(PIECE) };
        Ok(Self { pieces: [piece()?, piece()?] })
    }

    /// Queues the copy of `src` to `dst`. When it returns, `src` may change.
    ///
    /// # Safety
    /// `dst` has room for `src` and is there until the copy is done.
    pub unsafe fn copy(&mut self, stream: &CudaStream, dst: u64, src: &[u8]) -> Result<(), DriverError> {
        stream.context().bind_to_thread()?;
        for (i, part) in src.chunks(PIECE).enumerate() {
            let piece = &mut self.pieces[i % 2];
            // Waits until the piece was copied to the device.
            fill(&mut piece.as_mut_slice()?[..part.len()], part);
            // SAFETY: the guard records when the piece is copied, and outlives the call.
            let (bytes, _copied) = unsafe { piece.stream_synced_slice(stream) };
            let to = dst + (i * PIECE) as u64;
            // SAFETY: `dst` has room; the piece is not written before it is copied, see above.
            unsafe { result::memcpy_htod_async(to, &bytes[..part.len()], stream.cu_stream())? };
        }
        Ok(())
    }
}

/// Copies by several threads.
fn fill(dst: &mut [u8], src: &[u8]) {
    let most = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let share = src.len().div_ceil(most).max(LEAST);
    thread::scope(|scope| {
        let mut shares = dst.chunks_mut(share).zip(src.chunks(share));
        let own = shares.next();
        for (dst, src) in shares {
            scope.spawn(move || dst.copy_from_slice(src));
        }
        own.into_iter().for_each(|(dst, src)| dst.copy_from_slice(src));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied() {
        let src: Vec<u8> = (0..5 * LEAST + 3).map(|i| (i * 7 / 3) as u8).collect();
        for len in [0, 1, LEAST, LEAST + 1, src.len()] {
            let mut dst = vec![0; len];
            fill(&mut dst, &src[..len]);
            assert_eq!(dst, src[..len]);
        }
    }
}
