//! A step from its plan to its tokens. It may stay in flight: the next one is queued before its tokens are known.

use kivi_kernels::{Backend, Element, Rows, SeqStep, StepError, StepPlan, ops};

use super::{Engine, Event, Pick, SeqId, Sequence, SequenceError};

/// Stands for a token that the host does not know.
const UNKNOWN: &[u32] = &[0];

/// A step that was queued.
pub(super) struct Flight<B: Backend> {
    /// Who gets a token, and from which row.
    rows: Vec<(SeqId, usize)>,
    /// The likeliest token of each row, if somebody wants that.
    chosen: Option<B::Later>,
}

/// A token and, if asked for, what it was chosen from; none if that is not finite.
type Choice = Option<(u32, Option<Vec<f32>>)>;

impl Sequence {
    /// Whether its next token can be taken where it was chosen, on the device, before the host knows it. A text that is kept must
    /// be restored exactly, so that nothing may be written behind its end.
    fn may_fly(&self) -> bool {
        self.is_greedy() && !self.request.keep && self.request.forced.len() <= self.generated()
    }

    /// The next `n` tokens that the cache lacks, and the row that has the first if only the device knows it.
    fn next(&self, n: usize) -> (&[u32], Option<usize>) {
        let len = self.cache.len;
        if len < self.tokens.len() { (&self.tokens[len..len + n], None) } else { (UNKNOWN, Some(self.row)) }
    }
}

impl<B: Backend> Engine<'_, B> {
    /// Whether a text will have all its tokens when those in flight are known.
    pub(super) fn ends(&self, seq: &Sequence) -> bool {
        seq.in_flight > 0 && self.is_full(seq, seq.len())
    }

    /// Whether what is in flight ends a text whose place another one waits for.
    pub(super) fn makes_room(&self) -> bool {
        !self.waiting.is_empty() && self.running.iter().any(|seq| self.ends(seq))
    }

    /// Whether the next step may be queued before the tokens of this one are known.
    pub(super) fn may_stay(&self, flight: &Flight<B>) -> bool {
        let may_fly = |seq: &Sequence| seq.in_flight == 0 || seq.may_fly();
        self.run_ahead && !flight.rows.is_empty() && self.running.iter().all(may_fly)
    }

    /// Plans and queues a step.
    pub(super) fn run(&mut self, picks: &[Pick]) -> Result<Flight<B>, StepError<B::Error>> {
        self.plan(picks)?;
        let ready = |(i, n): Pick| self.running[i].pending() == n;
        let choose = picks.iter().any(|&pick| ready(pick) && self.running[pick.0].is_greedy());
        self.queue(choose)?;
        let chosen = choose.then(|| self.backend.read_later(&self.batch.chosen, picks.len())).transpose()?;
        let mut rows = Vec::new();
        for (row, &(i, n)) in picks.iter().enumerate() {
            let seq = &mut self.running[i];
            self.cache.advance(&mut seq.cache, n);
            if seq.pending() > 0 {
                continue;
            }
            if seq.request.keep && seq.generated() == 0 {
                seq.snapshots.push(self.cache.snapshot(self.backend, &seq.cache)?);
            }
            (seq.in_flight, seq.row) = (seq.in_flight + 1, row);
            rows.push((seq.id, row));
        }
        Ok(Flight { rows, chosen })
    }

    /// Tells the device what the step is about.
    fn plan(&mut self, picks: &[Pick]) -> Result<(), StepError<B::Error>> {
        self.cache.clear_pages(self.backend)?;
        let next = |&(i, n): &Pick| self.running[i].next(n);
        let from: Vec<_> = picks.iter().map(|pick| next(pick).1).collect();
        let seqs = picks.iter().map(|pick| {
            let cache = &self.running[pick.0].cache;
            let groups = self.cache.plan(cache, pick.1);
            SeqStep { tokens: next(pick).0, len: cache.len, active: true, groups }
        });
        self.batch.plan_ahead(self.backend, &StepPlan { seqs: seqs.collect() }, &from)?;
        let lens = picks.iter().map(|&(i, n)| self.running[i].cache.len + n);
        Ok(self.model.write_frequencies(self.backend, &mut self.workspace, lens)?)
    }

    /// Queues the planned step, to its logits or to the likeliest token of each row.
    fn queue(&mut self, choose: bool) -> Result<(), StepError<B::Error>> {
        let (model, workspace, cache) = (self.model, &mut self.workspace, &mut self.cache);
        let key = self.batch.key(choose.into());
        let batch = &mut self.batch;
        let mut step = |backend: &B| {
            model.forward(backend, workspace, cache, batch, &mut |_, _| Ok(()))?;
            if choose {
                let logits = Rows::new(&workspace.logits, batch.n_seqs(), model.config().vocab_size)?;
                backend.argmax(ops::Argmax::new(&mut batch.chosen, logits)?)?;
            }
            Ok(())
        };
        match &mut self.recordings {
            Some(recordings) => self.backend.record(recordings, key, step),
            None => step(self.backend),
        }
    }

    /// Waits for the tokens of the step in flight, if one is, and tells what came of it. Who left in the meantime gets none.
    pub(super) fn land(&mut self) -> Result<Vec<Event>, StepError<B::Error>> {
        let Some(Flight { rows, chosen }) = self.flight.take() else { return Ok(Vec::new()) };
        let chosen = chosen.map(|later| self.backend.wait(later)).transpose()?.unwrap_or_default();
        let mut events = Vec::new();
        // Those that ended, and whether they may be kept.
        let mut done = Vec::new();
        for (id, row) in rows {
            let Some(i) = self.place(id) else { continue };
            self.running[i].in_flight -= 1;
            let Some((token, logits)) = self.choose(row, i, chosen.get(row).copied())? else {
                let place = self.first_not_finite(i)?;
                done.push((i, false));
                events.push(Event::Failed { id, error: SequenceError::NotFinite { place } });
                continue;
            };
            self.running[i].tokens.push(token);
            events.push(Event::Token { id, token, logits });
            if let Some(reason) = self.finish_reason(i, token) {
                self.take_back(i);
                done.push((i, self.running[i].request.keep));
                events.push(Event::Finished { id, reason, cache: self.cache_use(i) });
            }
        }
        done.sort_unstable();
        for (i, keep) in done.into_iter().rev() {
            self.release(i, keep);
        }
        Ok(events)
    }

    fn place(&self, id: SeqId) -> Option<usize> {
        self.running.iter().position(|seq| seq.id == id)
    }

    /// What a step in flight does to a text that ended before it does not count.
    pub(super) fn take_back(&mut self, i: usize) {
        let seq = &mut self.running[i];
        let generated = seq.cache.len.saturating_sub(seq.request.prompt.len());
        let n = std::mem::take(&mut seq.in_flight).min(generated);
        self.cache.take_back(&mut seq.cache, n);
    }

    /// The next token of running sequence `i`, whose logits are in `row`; `None` if they are not finite.
    fn choose(&mut self, row: usize, i: usize, greedy: Option<u32>) -> Result<Choice, StepError<B::Error>> {
        let vocab_size = self.model.config().vocab_size;
        let seq = &mut self.running[i];
        let forced = seq.request.forced.get(seq.generated()).copied();
        if seq.is_greedy() {
            let best = greedy.filter(|&token| (token as usize) < vocab_size);
            return Ok(best.map(|best| (forced.unwrap_or(best), None)));
        }
        let mut values = vec![B::Act::from_f64(0.0); vocab_size];
        self.backend.read(&self.workspace.logits, row * vocab_size, &mut values)?;
        let logits: Vec<f32> = values.iter().map(|x| x.to_f64() as f32).collect();
        if logits.iter().any(|x| !x.is_finite()) {
            return Ok(None);
        }
        let token = forced.unwrap_or_else(|| seq.sampler.sample(&logits, &seq.tokens));
        Ok(Some((token, seq.request.want_logits.then_some(logits))))
    }
}
