//! What a step is about, on its way to the device: one copy from pinned memory, and a kernel that puts the words where they
//! belong.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaContext, CudaStream, DriverError, HostSlice, PinnedHostSlice, result};
use kivi_kernels::{Patch, Words};

use super::source;
use crate::device::Cuda;
use crate::{Act, CudaBuffer, CudaError};

source!("patch.cu": PatchPart, PatchParams);

/// Words that there is room for at first.
const LEAST: usize = 1 << 14;
/// Words of a [`PatchPart`].
const PART: usize = size_of::<PatchPart>() / 4;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PatchPart {
    dst: u64,
    src: u64,
    count: u32,
    chosen: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PatchParams {
    parts: u64,
}

/// Where patches lie on their way: on the host twice, so that one is written while the other is copied.
pub(crate) struct Parcel {
    pinned: [PinnedHostSlice<u32>; 2],
    next: usize,
    words: CudaBuffer<u32>,
}

impl Parcel {
    fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>, len: usize) -> Result<Self, CudaError> {
        let len = len.next_power_of_two().max(LEAST);
        // SAFETY: what is copied from it was written before.
        let pinned = || unsafe { context.alloc_pinned(len) }.map_err(CudaError::driver("pinned memory"));
        Ok(Self { pinned: [pinned()?, pinned()?], next: 0, words: CudaBuffer::uninit(stream, len)? })
    }

    /// Queues the copy of `words`, at most as many as there is room for.
    fn send(&mut self, stream: &CudaStream, words: &[u32]) -> Result<(), DriverError> {
        let pinned = &mut self.pinned[self.next];
        self.next = 1 - self.next;
        // Waits until what it had was copied.
        pinned.as_mut_slice()?[..words.len()].copy_from_slice(words);
        stream.context().bind_to_thread()?;
        // SAFETY: the guard records when the words are copied, and outlives the call.
        let (pinned, _copied) = unsafe { pinned.stream_synced_slice(stream) };
        let to = self.words.device_ptr();
        // SAFETY: there is room; the words are not written before they are copied, see above.
        unsafe { result::memcpy_htod_async(to, &pinned[..words.len()], stream.cu_stream()) }
    }
}

/// The parts, without the address that the words of the host will have, and those words.
fn collect<A: Act>(patches: Vec<Patch<'_, Cuda<A>>>) -> Result<(Vec<PatchPart>, Vec<u32>), CudaError> {
    let (mut parts, mut all) = (Vec::new(), Vec::new());
    for Patch { dst, parts: of_dst } in patches {
        for (offset, words) in of_dst {
            let (src, count, chosen) = match &words {
                Words::Host(words) => (4 * all.len() as u64, words.len(), 0),
                Words::Chosen(src, place) => {
                    src.check(*place, 1)?;
                    (src.at(*place), 1, 1)
                }
            };
            dst.check(offset, count)?;
            if count > 0 {
                parts.push(PatchPart { dst: dst.at(offset), src, count: count as u32, chosen });
            }
            if let Words::Host(words) = words {
                all.extend(words);
            }
        }
    }
    Ok((parts, all))
}

pub(crate) fn patch<A: Act>(cuda: &Cuda<A>, patches: Vec<Patch<'_, Cuda<A>>>) -> Result<(), CudaError> {
    let (mut parts, words) = collect(patches)?;
    let len = parts.len() * PART + words.len();
    let mut parcel = cuda.parcel();
    if parcel.as_ref().is_none_or(|parcel| parcel.words.check(0, len).is_err()) {
        *parcel = Some(Parcel::new(&cuda.context, &cuda.stream, len)?);
    }
    let Some(parcel) = parcel.as_mut() else { return Ok(()) };
    let first = parcel.words.at(parts.len() * PART);
    for part in parts.iter_mut().filter(|part| part.chosen == 0) {
        part.src += first;
    }
    let all = [bytemuck::cast_slice(&parts), words.as_slice()].concat();
    parcel.send(&cuda.stream, &all).map_err(CudaError::driver("sending a step"))?;
    let params = PatchParams { parts: parcel.words.device_ptr() };
    // SAFETY: all parts were checked against their buffers; a block a part. The next parcel is copied after this launch.
    unsafe { cuda.launch(&SOURCE, "patch", [parts.len(), 1, 1], params) }?;
    cuda.settled.wrote_plan();
    Ok(())
}
