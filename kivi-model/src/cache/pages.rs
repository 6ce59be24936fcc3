//! Who owns which page of a group: the free list, and the page table of a sequence.

use std::collections::HashSet;

use kivi_quant::PageLayout;

use super::{CacheSizes, GroupShape};

/// The pages of a group.
pub(super) struct Pool {
    shape: GroupShape,
    /// New tokens of a step.
    step_tokens: usize,
    free: Vec<u32>,
    /// Pages that had an owner before: they are zeroed when they are handed out again.
    used: Vec<bool>,
    dirty: Vec<u32>,
}

/// A sequence's page table of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct SeqPages {
    /// Pages in order of their tokens. The first `left` of them have other owners by now; nothing reads these entries.
    table: Vec<u32>,
    /// Pages that left the window.
    left: usize,
}

impl SeqPages {
    /// What a step sees.
    pub fn table(&self) -> &[u32] {
        &self.table
    }

    /// The pages that are the sequence's.
    pub fn owned(&self) -> &[u32] {
        &self.table[self.left..]
    }

    pub fn n_owned(&self) -> usize {
        self.table.len() - self.left
    }

    /// Pages that left the window.
    pub fn left(&self) -> usize {
        self.left
    }

    /// The first token that a page holds.
    pub fn first_token(&self, layout: &PageLayout) -> usize {
        self.left * layout.config().page_tokens()
    }
}

impl CacheSizes {
    /// Pages of the pool of a group.
    pub fn pages(&self, shape: &GroupShape) -> usize {
        let tokens = shape.layout.config().page_tokens();
        let n = self.pool_tokens.div_ceil(tokens);
        let Some(window) = shape.window else { return n };
        let seq = window_pages(shape, window).saturating_mul(self.n_slots);
        n.min(seq.saturating_add(self.step_tokens.div_ceil(tokens)))
    }
}

impl Pool {
    /// Pages for `sizes.pool_tokens` tokens; where there is a window, no more than all sequences together ever need.
    pub fn new(shape: GroupShape, sizes: CacheSizes) -> Self {
        let n = sizes.pages(&shape);
        let free = (0..n as u32).rev().collect();
        Self { shape, step_tokens: sizes.step_tokens, free, used: vec![false; n], dirty: Vec::new() }
    }

    pub fn n_pages(&self) -> usize {
        self.used.len()
    }

    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Whether a sequence of `len` tokens fits, however it grows.
    pub fn can_hold(&self, len: usize) -> bool {
        let most = self.shape.window.map_or(usize::MAX, |window| {
            let step = self.step_tokens.div_ceil(self.shape.layout.config().page_tokens());
            window_pages(&self.shape, window).saturating_add(step)
        });
        self.shape.layout.config().pages(len).min(most) <= self.n_pages()
    }

    /// Pages that a sequence that holds `from` tokens lacks to hold `len`; with a window, to hold what a step can add.
    pub fn missing(&self, pages: &SeqPages, from: usize, len: usize) -> usize {
        let ahead = self.shape.window.map_or(len, |_| len.min(from.saturating_add(self.step_tokens)));
        self.shape.layout.config().pages(ahead).saturating_sub(pages.table.len())
    }

    /// Hands out what is [`Pool::missing`].
    pub fn reserve(&mut self, pages: &mut SeqPages, from: usize, len: usize) {
        for _ in 0..self.missing(pages, from, len) {
            let page = self.free.pop().expect("counted by the caller");
            if std::mem::replace(&mut self.used[page as usize], true) {
                self.dirty.push(page);
            }
            pages.table.push(page);
        }
    }

    /// The pages that are to be zeroed before the next step.
    pub fn take_dirty(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.dirty)
    }

    /// The pages of a sequence were written whole, so that they need not be zeroed.
    pub fn written(&mut self, pages: &SeqPages) {
        let owned: HashSet<u32> = pages.owned().iter().copied().collect();
        self.dirty.retain(|page| !owned.contains(page));
    }

    /// Takes back the pages whose tokens are packed and are seen by no token from `len` on.
    pub fn leave_window(&mut self, pages: &mut SeqPages, len: usize) {
        let gone = self.left_at(len).clamp(pages.left, pages.table.len());
        self.free.extend(pages.table[pages.left..gone].iter().rev());
        pages.left = gone;
    }

    /// Pages that have left the window when there are `len` tokens.
    pub fn left_at(&self, len: usize) -> usize {
        self.shape.window.map_or(0, |window| self.shape.layout.config().pages_left(window, len))
    }

    /// Whether the pages that a sequence of `len` tokens reads or writes are still its own.
    pub fn has_pages_of(&self, pages: &SeqPages, len: usize) -> bool {
        pages.left <= self.left_at(len)
    }

    /// Takes back the pages that a sequence of `len` tokens does not need.
    pub fn shrink(&mut self, pages: &mut SeqPages, len: usize) {
        let cut = self.cut(pages, len);
        self.free.extend(cut.into_iter().rev());
    }

    /// Takes the pages that a sequence of `len` tokens does not need out of its table.
    fn cut(&self, pages: &mut SeqPages, len: usize) -> Vec<u32> {
        let keep = self.shape.layout.config().pages(len).clamp(pages.left, pages.table.len());
        let cut = pages.table.split_off(keep);
        if len == 0 {
            *pages = SeqPages::default();
        }
        cut
    }

    /// Whether a sequence that goes back to `from` tokens can grow to `len`; as [`Pool::missing`] counts.
    pub fn has_room_from(&self, pages: &SeqPages, from: usize, len: usize) -> bool {
        let mut pages = pages.clone();
        let cut = self.cut(&mut pages, from).len();
        self.missing(&pages, from, len) <= self.n_free() + cut
    }

    /// Takes back all pages of a sequence.
    pub fn release(&mut self, pages: SeqPages) {
        self.free.extend(pages.owned().iter().rev());
    }

    /// A page table whose first `left` pages left the window, and none of its own yet.
    pub fn restored(&self, left: usize) -> SeqPages {
        SeqPages { table: vec![0; left], left }
    }
}

/// Most pages that a sequence has between steps: the window, or what is not packed on both sides yet, whichever is
/// longer, and a part of a page at both ends.
fn window_pages(shape: &GroupShape, window: usize) -> usize {
    let config = shape.layout.config();
    window.max(config.residual_length()).div_ceil(config.page_tokens()).saturating_add(2)
}
