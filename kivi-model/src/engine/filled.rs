//! Texts that are kept without having been computed: for measuring steps over long caches.

use kivi_kernels::Backend;

use super::kept::Kept;
use super::{Engine, SeqId};

impl<B: Backend> Engine<'_, B> {
    /// Fills the whole cache with what it has of the kept text `id`, again and again, and forgets that text. There must be no
    /// other text, kept or running; false, and nothing was done, if that is not so.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn fill(&mut self, id: SeqId) -> Result<bool, B::Error> {
        if !self.is_idle() || self.kept.len() != 1 {
            return Ok(false);
        }
        let Some(kept) = self.kept.get(&id) else { return Ok(false) };
        self.cache.fill(self.backend, &kept.cache)?;
        Ok(self.forget(id))
    }

    /// Keeps `tokens` as a text, as if they had been computed: its cache is what lies where it has its place, which
    /// [`Engine::fill`] made. What continues it takes as long as over any cache of that length, and means nothing. `None` if
    /// there is no room.
    pub fn keep_filled(&mut self, tokens: Vec<u32>) -> Option<SeqId> {
        let cache = self.cache.open_at(tokens.len())?;
        let id = self.new_id();
        self.kept.insert(id, Kept { tokens, cache, snapshots: Vec::new() });
        Some(id)
    }
}
