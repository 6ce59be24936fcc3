//! Going back to an earlier state of a sequence.
//!
//! Pages only grow: what was packed when a sequence had `len` tokens is still there when it has more. What is lost is
//! the full-precision rows of the tokens that were packed since. So a state can be restored exactly where nothing was packed
//! since (at 16 bits anywhere), or where a [`Snapshot`] of the rings was taken. Where the rotation of keys depends on the length
//! of the text, one that has outgrown the trained context is not shortened either: its first keys may have been rotated for
//! more tokens than are left.

use kivi_kernels::Backend;
use kivi_quant::KiviConfig;

use super::{KvCache, SeqCache};

/// What was not packed of a sequence at some length.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    /// Tokens that were in the cache.
    pub len: usize,
    /// Keys and values of each layer, as [`super::LayerState::rows`].
    pub rows: Vec<[Vec<u32>; 2]>,
}

impl<B: Backend> KvCache<B> {
    /// What [`KvCache::rewind`] needs to come back to this state.
    pub(crate) fn snapshot(&self, backend: &B, seq: &SeqCache) -> Result<Snapshot, B::Error> {
        let rows = (0..self.layers.len()).map(|layer| self.rows(backend, layer, seq));
        Ok(Snapshot { len: seq.len, rows: rows.collect::<Result<_, _>>()? })
    }

    /// Brings `seq` to the longest state of at most `len` tokens that can be restored exactly, and drops the snapshots of longer
    /// ones. Tells how many tokens that is.
    pub(crate) fn rewind(
        &mut self,
        backend: &B,
        seq: &mut SeqCache,
        snapshots: &mut Vec<Snapshot>,
        len: usize,
    ) -> Result<usize, B::Error> {
        let (to, from) = self.rewinds_to(seq, snapshots, len);
        if let Some(snapshot) = from.map(|i| &snapshots[i]) {
            for (layer, rows) in snapshot.rows.iter().enumerate() {
                self.write_rows(backend, layer, seq.slot, (snapshot.len, rows))?;
            }
        }
        seq.len = to;
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.shrink(pages, to);
        }
        snapshots.retain(|snapshot| snapshot.len <= to);
        Ok(to)
    }

    /// To how many tokens [`KvCache::rewind`] brings `seq`, and by which snapshot, if by one.
    pub(crate) fn rewinds_to(
        &self,
        seq: &SeqCache,
        snapshots: &[Snapshot],
        len: usize,
    ) -> (usize, Option<usize>) {
        let direct = self.reach(seq, seq.len, len).map(|to| (to, None));
        let stored = snapshots.iter().enumerate();
        let stored = stored.filter_map(|(i, s)| self.reach(seq, s.len, len).map(|to| (to, Some(i))));
        let best = direct.into_iter().chain(stored).max_by_key(|(to, from)| (*to, from.is_none()));
        best.unwrap_or((0, None))
    }

    /// How near to `len` tokens the state of `from` tokens can be shortened exactly, if it can.
    fn reach(&self, seq: &SeqCache, from: usize, len: usize) -> Option<usize> {
        let to = len.min(from);
        if to < from && from > self.shape.rotated_alike {
            return None;
        }
        let exact = |config: &KiviConfig| {
            let (before, after) = (config.packed(to), config.packed(from));
            let (k, v) = (config.k_bits().is_quantized(), config.v_bits().is_quantized());
            (!k || before.k >= after.k) && (!v || before.v >= after.v)
        };
        let pools = self.shape.groups.iter().zip(self.pools.iter().zip(&seq.pages));
        let possible = pools
            .into_iter()
            .all(|(group, (pool, pages))| exact(group.layout.config()) && pool.has_pages_of(pages, to));
        possible.then_some(to)
    }
}
