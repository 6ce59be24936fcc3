//! A step from its plan to its tokens. It may stay in flight: the next one is queued before its tokens are known.

use kivi_kernels::ops::{self, Draw};
use kivi_kernels::{Backend, Batch, Element, Rows, SeqStep, StepError, StepPlan};

use super::{Engine, Event, Pick, Request, SeqId, Sequence, SequenceError};

/// Stands for a token that the host does not know.
const UNKNOWN: &[u32] = &[0];

/// What a step does with its logits.
#[derive(Clone, Copy, PartialEq)]
enum Choice {
    /// Nothing: it ends in the middle of prompts.
    Nothing,
    /// The likeliest token of each row.
    Likeliest,
    /// A token of each row, as its draw has it.
    Drawn,
}

/// A step that was queued.
pub(super) struct Flight<B: Backend> {
    /// Who gets a token, and from which row.
    rows: Vec<(SeqId, usize)>,
    choice: Choice,
    /// The token of each row, if one was chosen.
    chosen: Option<B::Later>,
}

impl Sequence {
    /// Whether its next token can be taken where it was chosen, on the device, before the host knows it. A text that is kept must
    /// be restored exactly, so that nothing may be written behind its end.
    fn may_fly(&self) -> bool {
        let Request { sampling, want_logits, keep, forced, .. } = &self.request;
        !sampling.penalises() && !want_logits && !keep && forced.len() <= self.generated()
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
        let choice = self.plan(picks)?;
        self.queue(choice)?;
        let chosen = (choice != Choice::Nothing)
            .then(|| self.backend.read_later(&self.batch.chosen, picks.len()))
            .transpose()?;
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
        Ok(Flight { rows, choice, chosen })
    }

    /// Tells the device what the step is about, and what is to be done with its logits.
    fn plan(&mut self, picks: &[Pick]) -> Result<Choice, StepError<B::Error>> {
        self.cache.clear_pages(self.backend)?;
        let (choice, draws) = self.draw(picks);
        let next = |&(i, n): &Pick| self.running[i].next(n);
        let from: Vec<_> = picks.iter().map(|pick| next(pick).1).collect();
        let seqs = picks.iter().map(|pick| {
            let cache = &self.running[pick.0].cache;
            let groups = self.cache.plan(cache, pick.1);
            SeqStep { tokens: next(pick).0, len: cache.len, active: true, groups }
        });
        self.batch.plan_ahead(self.backend, &StepPlan { seqs: seqs.collect() }, &from, &draws)?;
        let lens = picks.iter().map(|&(i, n)| self.running[i].cache.len + n);
        self.model.write_frequencies(self.backend, &mut self.workspace, lens)?;
        Ok(choice)
    }

    /// How the tokens of a step are drawn, sequence by sequence, if any is. Who gets none takes no random number.
    fn draw(&mut self, picks: &[Pick]) -> (Choice, Vec<Draw>) {
        let mut choice = Choice::Nothing;
        let mut draws = Vec::new();
        for &(i, n) in picks {
            let seq = &mut self.running[i];
            let ready = seq.pending() == n;
            let draw = if ready { seq.draw() } else { Draw::GREEDY };
            choice = match choice {
                _ if draw != Draw::GREEDY => Choice::Drawn,
                Choice::Nothing if ready => Choice::Likeliest,
                choice => choice,
            };
            draws.push(draw);
        }
        if choice != Choice::Drawn {
            draws.clear();
        }
        (choice, draws)
    }

    /// Queues the planned step, to its logits and the choice from them.
    fn queue(&mut self, choice: Choice) -> Result<(), StepError<B::Error>> {
        let (model, workspace, cache) = (self.model, &mut self.workspace, &mut self.cache);
        let key = self.batch.key(choice as u32);
        let batch = &mut self.batch;
        let mut step = |backend: &B| {
            model.forward(backend, workspace, cache, batch, &mut |_, _| Ok(()))?;
            choose(backend, batch, (&workspace.logits, model.config().vocab_size), choice)
        };
        match &mut self.recordings {
            Some(recordings) => self.backend.record(recordings, key, step),
            None => step(self.backend),
        }
    }

    /// Waits for the tokens of the step in flight, if one is, and tells what came of it. Who left in the meantime gets none.
    pub(super) fn land(&mut self) -> Result<Vec<Event>, StepError<B::Error>> {
        let Some(flight) = self.flight.take() else { return Ok(Vec::new()) };
        let Flight { rows, choice, chosen } = flight;
        let mut chosen = chosen.map(|later| self.backend.wait(later)).transpose()?.unwrap_or_default();
        let wanted = rows.iter().map(|&(id, row)| self.wanted_logits(id, row));
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        if self.penalise(&rows)? {
            let logits = (&self.workspace.logits, self.model.config().vocab_size);
            choose(self.backend, &mut self.batch, logits, choice)?;
            let later = self.backend.read_later(&self.batch.chosen, chosen.len())?;
            chosen = self.backend.wait(later)?;
        }
        let mut events = Vec::new();
        // Those that ended, and whether they may be kept.
        let mut done = Vec::new();
        for ((id, row), logits) in rows.into_iter().zip(wanted) {
            let Some(i) = self.place(id) else { continue };
            self.running[i].in_flight -= 1;
            let token = chosen.get(row).filter(|&&token| (token as usize) < self.model.config().vocab_size);
            let Some(&token) = token else {
                let place = self.first_not_finite(i)?;
                done.push((i, false));
                events.push(Event::Failed { id, error: SequenceError::NotFinite { place } });
                continue;
            };
            let token = self.running[i].forced().unwrap_or(token);
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

    /// The logits of a row, if its sequence wants them.
    fn wanted_logits(&self, id: SeqId, row: usize) -> Result<Option<Vec<f32>>, B::Error> {
        let wants = self.place(id).is_some_and(|i| self.running[i].request.want_logits);
        wants.then(|| Ok(as_f32(&self.logits(row)?))).transpose()
    }

    /// Applies repetition penalties to the logits on the device, by way of the host, which alone knows the texts; tells whether
    /// there were any. What would not be finite stays as it is.
    fn penalise(&mut self, rows: &[(SeqId, usize)]) -> Result<bool, B::Error> {
        let mut any = false;
        for &(id, row) in rows {
            let Some(seq) = self.place(id).map(|i| &self.running[i]) else { continue };
            // The token is in flight still: a forced one is that before the next.
            let forced = seq.request.forced.len() > seq.generated();
            if forced || !seq.request.sampling.penalises() {
                continue;
            }
            let mut logits = self.logits(row)?;
            let mut scores = as_f32(&logits);
            seq.sampler.penalise(&mut scores, &seq.tokens);
            for (logit, &score) in logits.iter_mut().zip(&scores) {
                let score = B::Act::from_f64(score.into());
                *logit = if score.to_f64().is_finite() { score } else { *logit };
            }
            self.backend.write(&mut self.workspace.logits, row * logits.len(), &logits)?;
            any = true;
        }
        Ok(any)
    }

    /// A row of the logits.
    fn logits(&self, row: usize) -> Result<Vec<B::Act>, B::Error> {
        let mut logits = vec![B::Act::from_f64(0.0); self.model.config().vocab_size];
        self.backend.read(&self.workspace.logits, row * logits.len(), &mut logits)?;
        Ok(logits)
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
}

/// Chooses the tokens of a step from its logits.
fn choose<B: Backend>(
    backend: &B,
    batch: &mut Batch<B>,
    (logits, vocab_size): (&B::Buffer<B::Act>, usize),
    choice: Choice,
) -> Result<(), StepError<B::Error>> {
    if choice == Choice::Nothing {
        return Ok(());
    }
    let logits = Rows::new(logits, batch.n_seqs(), vocab_size)?;
    match choice {
        Choice::Drawn => backend.sample(ops::Sample::new(&mut batch.chosen, logits, &batch.draws)?)?,
        _ => backend.argmax(ops::Argmax::new(&mut batch.chosen, logits)?)?,
    }
    Ok(())
}

fn as_f32<T: Element>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.to_f64() as f32).collect()
}
