//! Texts whose caches stay when they end, to be continued or saved.

use std::collections::BTreeMap;

use kivi_kernels::Backend;

use super::{Engine, RestoreError, SeqId};
use crate::cache::{KvCache, SeqCache, Snapshot};
use crate::policy::CachePolicy;
use crate::saved::{Header, SavedCache};

/// A text at rest.
pub(super) struct Kept {
    /// Its tokens; the cache has the first `cache.len` of them.
    pub tokens: Vec<u32>,
    pub cache: SeqCache,
    pub snapshots: Vec<Snapshot>,
}

impl Kept {
    /// Nothing yet.
    pub fn new(cache: SeqCache) -> Self {
        Self { tokens: Vec::new(), cache, snapshots: Vec::new() }
    }

    /// Goes back to what `prompt` has in common with the text, or as near as can be restored exactly; the last token of a prompt
    /// is computed in any case, since its logits are wanted. Tells how many tokens are left.
    pub fn rewind_to<B: Backend>(
        &mut self,
        backend: &B,
        cache: &mut KvCache<B>,
        prompt: &[u32],
    ) -> Result<usize, B::Error> {
        let len = self.common(prompt);
        cache.rewind(backend, &mut self.cache, &mut self.snapshots, len)
    }

    /// Whether there are pages to go back to what `prompt` has in common with the text, and on to its end.
    pub fn has_room<B: Backend>(&self, cache: &KvCache<B>, prompt: &[u32]) -> bool {
        let (from, _) = cache.rewinds_to(&self.cache, &self.snapshots, self.common(prompt));
        cache.has_room_from(&self.cache, from, prompt.len())
    }

    /// Tokens that `prompt` begins with, as the text does, but for its last one.
    fn common(&self, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(x, y)| x == y).count();
        common.min(prompt.len().saturating_sub(1))
    }
}

impl<B: Backend> Engine<'_, B> {
    /// The cache settings of the layers.
    pub fn policy(&self) -> &CachePolicy {
        &self.config.cache
    }

    /// Gives the place of a kept text back; false if there is no such text.
    pub fn forget(&mut self, id: SeqId) -> bool {
        let kept = self.kept.remove(&id);
        kept.map(|kept| self.cache.close(kept.cache)).is_some()
    }

    /// The tokens of a kept text, prompt and answer. The last ones need not be in the cache yet: the very last token of an answer
    /// is not.
    pub fn kept_tokens(&self, id: SeqId) -> Option<&[u32]> {
        self.kept.get(&id).map(|kept| kept.tokens.as_slice())
    }

    /// Keeps a text under `id`, or gives its place back.
    pub(super) fn put_away(&mut self, id: SeqId, text: Option<Kept>, keep: bool) {
        match text {
            Some(kept) if keep => drop(self.kept.insert(id, kept)),
            Some(kept) => self.cache.close(kept.cache),
            None => {}
        }
    }

    /// The cache of a kept text, to be written to a file; `None` if there is no such text.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn save(&self, id: SeqId) -> Result<Option<SavedCache>, B::Error> {
        let Some(kept) = self.kept.get(&id) else { return Ok(None) };
        let state = self.cache.state(self.backend, &kept.cache)?;
        let (header, tokens) = (self.header(), kept.tokens.clone());
        Ok(Some(SavedCache {
            header,
            tokens,
            state,
            snapshots: kept.snapshots.clone(),
            notes: BTreeMap::new(),
        }))
    }

    /// Keeps a text that was saved, perhaps on another backend, and names it.
    ///
    /// # Errors
    /// It is of another model or of other cache settings, it does not fit, or the device fails.
    pub fn restore(&mut self, saved: &SavedCache) -> Result<SeqId, RestoreError<B::Error>> {
        saved.header.check(&self.header())?;
        saved.check_tokens(self.model.config().vocab_size)?;
        let SavedCache { tokens, state, snapshots, .. } = saved;
        let fits = |snapshot| self.cache.fits_snapshot(snapshot, state.len);
        if !self.cache.fits(state) || !snapshots.iter().all(fits) {
            return Err(crate::saved::Mismatch::Arrays.into());
        }
        let no_room = || RestoreError::NoRoom { tokens: tokens.len() };
        if tokens.len() >= self.config.max_context {
            return Err(no_room());
        }
        let cache = self.cache.restore(self.backend, state).map_err(RestoreError::Device)?;
        let cache = cache.ok_or_else(no_room)?;
        let id = self.new_id();
        self.kept.insert(id, Kept { tokens: tokens.clone(), cache, snapshots: snapshots.clone() });
        Ok(id)
    }

    fn header(&self) -> Header {
        let config = self.model.config();
        Header {
            model: self.model.fingerprint().to_owned(),
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            layers: self.cache.layer_settings(),
        }
    }
}
