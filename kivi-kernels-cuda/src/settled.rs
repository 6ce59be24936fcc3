//! What the launches of a step that is being recorded may read before the launch before them is done.
//!
//! All that was written before a graph is there when its first launch starts, hence lengths, page tables, rings and pages, of
//! which attention and appending ask for some before they wait (`settled` in `cu/share.cuh` and `cu/append.cu`). What the graph
//! itself writes of it is kept here, until a launch starts when all before it are done: the first of the graph, and what is
//! behind a plan. Outside of graphs nothing is known of what is queued.

use core::cell::RefCell;

use cudarc::driver::sys::CUdeviceptr;

/// Not `Sync`: what another thread queued while a step is recorded would become part of it.
#[derive(Default)]
pub(crate) struct Settled(RefCell<Option<Recorded>>);

#[derive(Default)]
struct Recorded {
    /// Pools of which pages, and rings beside them, were written.
    pools: Vec<CUdeviceptr>,
    /// Whether the next launch starts when all before it are done.
    awaited: bool,
}

impl Settled {
    /// A step is recorded from here on, until [`Self::end`].
    pub fn begin(&self) {
        self.0.replace(Some(Recorded { awaited: true, ..Recorded::default() }));
    }

    pub fn end(&self) {
        self.0.replace(None);
    }

    /// A launch was queued that writes the cache with this pool.
    pub fn wrote(&self, pool: CUdeviceptr) {
        if let Some(recorded) = self.0.borrow_mut().as_mut() {
            recorded.pools.push(pool);
        }
    }

    /// A launch was queued that writes a plan, or what a step is about: the next one starts when it is done.
    pub fn wrote_plan(&self) {
        if let Some(recorded) = self.0.borrow_mut().as_mut() {
            recorded.awaited = true;
        }
    }

    /// Whether the launch that is queued now must start when all before it are done; if so, all they wrote is settled.
    pub fn is_awaited(&self) -> bool {
        let mut recorded = self.0.borrow_mut();
        recorded.as_mut().is_some_and(|recorded| recorded.awaited && std::mem::take(recorded).awaited)
    }

    /// Whether plans, what steps are about, and the cache with this pool are settled when the next launch starts.
    pub fn has(&self, pool: CUdeviceptr) -> bool {
        self.0.borrow().as_ref().is_some_and(|recorded| recorded.awaited || !recorded.pools.contains(&pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_recorded_launch_wrote_is_not_settled_until_a_launch_waits_for_it() {
        let settled = Settled::default();
        assert!(!settled.has(1), "who knows what is queued");
        settled.begin();
        assert!(settled.has(1) && settled.is_awaited(), "the graph waits for what is before it");
        assert!(settled.has(1) && !settled.is_awaited());
        settled.wrote(1);
        assert!(!settled.has(1) && settled.has(2));
        settled.wrote_plan();
        assert!(settled.has(1), "the next launch waits");
        assert!(settled.is_awaited() && !settled.is_awaited() && settled.has(1));
        settled.wrote_plan();
        assert!(settled.is_awaited());
        settled.wrote(1);
        assert!(!settled.has(1), "queued behind the launch that waited");
        settled.end();
        settled.wrote(1);
        settled.wrote_plan();
        assert!(!settled.is_awaited() && !settled.has(2));
    }
}
