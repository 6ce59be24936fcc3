//! The engine: sequences join and leave between steps, a step mixes prompts and decode rows. Everything that
//! generates uses it.

use std::collections::{BTreeMap, VecDeque};

use kivi_kernels::ops::Draw;
use kivi_kernels::{Backend, Batch, BatchCapacity, StepError};

use crate::cache::{CacheShape, CacheSizes, KvCache, SeqCache, SequenceState, Snapshot};
use crate::model::{Model, Workspace};
use crate::sampler::Sampler;

mod filled;
mod flight;
mod kept;
mod memory;
mod rewrite;
mod types;

use flight::Flight;
use kept::Kept;
pub use memory::EngineBytes;
pub use types::{
    CacheUse, EngineConfig, EngineError, Event, FinishReason, PageUse, Request, RestoreError, SeqId,
    SequenceError, SubmitError,
};

struct Sequence {
    id: SeqId,
    request: Request,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    sampler: Sampler,
    cache: SeqCache,
    /// States to come back to, of a request that is kept.
    snapshots: Vec<Snapshot>,
    /// Tokens that were in the cache when it began.
    reused: usize,
    /// Tokens that the device chose and the host does not know yet; they come after `tokens`.
    in_flight: usize,
    /// The row of the step before in which the newest of them was chosen.
    row: usize,
}

/// A request that has no slot yet, with the text that it continues.
struct Waiting {
    id: SeqId,
    request: Request,
    past: Option<Kept>,
}

impl Sequence {
    fn pending(&self) -> usize {
        self.len() - self.cache.len
    }

    /// Tokens that there are, known or not.
    fn len(&self) -> usize {
        self.tokens.len() + self.in_flight
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// The token that the request wants in place of the one that is chosen next.
    fn forced(&self) -> Option<u32> {
        self.request.forced.get(self.generated() + self.in_flight).copied()
    }

    /// How the next token is drawn; a forced one takes no random number.
    fn draw(&mut self) -> Draw {
        if self.forced().is_some() { Draw::GREEDY } else { self.sampler.draw() }
    }
}

/// One row of picks: which running sequence, how many of its tokens.
type Pick = (usize, usize);

/// Runs requests on a model with a KIVI cache.
pub struct Engine<'a, B: Backend> {
    /// Recorded steps; they go before the buffers that they use.
    recordings: Option<B::Recordings>,
    backend: &'a B,
    model: &'a Model<B>,
    config: EngineConfig,
    cache: KvCache<B>,
    batch: Batch<B>,
    workspace: Workspace<B>,
    /// The step whose tokens the host does not know yet.
    flight: Option<Flight<B>>,
    run_ahead: bool,
    waiting: VecDeque<Waiting>,
    running: Vec<Sequence>,
    kept: BTreeMap<SeqId, Kept>,
    next_id: u64,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// Allocates activations, page pool and rings.
    ///
    /// # Errors
    /// Cache settings that do not fit the model or the backend, or no memory.
    pub fn new(
        backend: &'a B,
        model: &'a Model<B>,
        config: EngineConfig,
    ) -> Result<Self, EngineError<B::Error>> {
        let EngineConfig { max_seqs, max_batched_tokens, pool_tokens, max_context, .. } = config;
        if max_seqs == 0 || max_batched_tokens == 0 {
            return Err(EngineError::Empty { max_seqs, max_batched_tokens });
        }
        let shape = CacheShape::new(model.config(), &config.cache)?;
        for group in &shape.groups {
            let spec = model.spec(group.layout);
            if !backend.supports(&spec) {
                let what = format!("{spec:?}");
                return Err(EngineError::Unsupported { backend: backend.name().to_owned(), what });
            }
        }
        let device = EngineError::Device;
        let configs = shape.configs();
        let sizes = CacheSizes { pool_tokens, n_slots: max_seqs, step_tokens: max_batched_tokens };
        let cache = KvCache::new(backend, shape, sizes).map_err(device)?;
        let capacity = BatchCapacity {
            max_seqs,
            max_tokens: max_batched_tokens,
            max_pages: configs.iter().map(|c| max_context.div_ceil(c.page_tokens())).collect(),
            n_pages: cache.n_pages(),
            n_slots: max_seqs,
        };
        Ok(Self {
            cache,
            recordings: Some(B::Recordings::default()),
            batch: Batch::new(backend, capacity, &configs).map_err(device)?,
            workspace: model.workspace(backend, max_batched_tokens, max_seqs).map_err(device)?,
            flight: None,
            run_ahead: backend.runs_behind(),
            backend,
            model,
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            kept: BTreeMap::new(),
            next_id: 0,
        })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// A request that can never run.
    pub fn submit(&mut self, request: Request) -> Result<SeqId, SubmitError> {
        let (prompt, vocab_size) = (request.prompt.len(), self.model.config().vocab_size);
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        if prompt >= self.config.max_context {
            return Err(SubmitError::PromptTooLong { prompt, context: self.config.max_context });
        }
        let unknown = |&(_, &token): &(usize, &u32)| token as usize >= vocab_size;
        if let Some((place, &token)) = request.prompt.iter().chain(&request.forced).enumerate().find(unknown)
        {
            return Err(SubmitError::UnknownToken { token, place, vocab_size });
        }
        if !self.cache.can_hold(prompt) {
            return Err(SubmitError::PoolTooSmall { tokens: prompt, pool_tokens: self.config.pool_tokens });
        }
        let past = match request.past {
            Some(past) => Some(self.kept.remove(&past).ok_or(SubmitError::UnknownPast)?),
            None => None,
        };
        let id = self.new_id();
        self.waiting.push_back(Waiting { id, request, past });
        Ok(id)
    }

    fn new_id(&mut self) -> SeqId {
        self.next_id += 1;
        SeqId(self.next_id - 1)
    }

    /// Whether any request is left.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Prompt tokens of running requests that are in the cache.
    pub fn prompt_tokens_done(&self) -> usize {
        self.running.iter().map(|seq| seq.cache.len.min(seq.request.prompt.len())).sum()
    }

    /// The pages of each group of layers with equal settings and window.
    pub fn page_use(&self) -> Vec<PageUse> {
        let running = self.running.iter().map(|seq| &seq.cache);
        let waiting = self.waiting.iter().filter_map(|waiting| waiting.past.as_ref());
        self.cache.page_use(running.chain(waiting.chain(self.kept.values()).map(|kept| &kept.cache)))
    }

    /// What the cache holds of a running or a kept request ([`KvCache::state`]); `None` if there is no such request.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn cache_state(&self, id: SeqId) -> Result<Option<SequenceState>, B::Error> {
        let running = self.running.iter().find(|seq| seq.id == id).map(|seq| &seq.cache);
        let cache = running.or_else(|| self.kept.get(&id).map(|kept| &kept.cache));
        cache.map(|cache| self.cache.state(self.backend, cache)).transpose()
    }

    /// Ends a request; returns what its cache took, or `None` if there is no such request any more.
    pub fn cancel(&mut self, id: SeqId) -> Option<CacheUse> {
        if let Some(place) = self.waiting.iter().position(|waiting| waiting.id == id) {
            let Waiting { request, past, .. } = self.waiting.remove(place)?;
            self.put_away(id, past, request.keep);
            return Some(CacheUse::default());
        }
        let place = self.running.iter().position(|seq| seq.id == id)?;
        let keep = self.running[place].request.keep;
        Some(self.release(place, keep))
    }

    /// Whether a step is queued before the tokens of the one before are known, where these are chosen on the device and nothing
    /// that is known ends the text. Its events come with the next step then. On for backends that run behind the host, else off.
    pub fn set_run_ahead(&mut self, on: bool) {
        self.run_ahead = on;
    }

    /// Whether steps may be recorded and replayed ([`Backend::record`]), as they are at first.
    pub fn set_recorded(&mut self, on: bool) {
        self.recordings = on.then(B::Recordings::default);
    }

    /// Runs one step and tells what came of it, or of the step before ([`Self::set_run_ahead`]); nothing to do is no event.
    ///
    /// # Errors
    /// A failure of the device: the engine is of no further use.
    pub fn step(&mut self) -> Result<Vec<Event>, StepError<B::Error>> {
        let mut events = if self.makes_room() { self.land()? } else { Vec::new() };
        self.admit()?;
        let picks = self.pick();
        if picks.is_empty() {
            events.extend(self.land()?);
            if events.is_empty() {
                events.extend(self.fail_one_without_pages().or_else(|| self.fail_one_without_room()));
            }
            return Ok(events);
        }
        let flight = self.run(&picks)?;
        events.extend(self.land()?);
        let stays = self.may_stay(&flight);
        self.flight = Some(flight);
        if !stays {
            events.extend(self.land()?);
        }
        Ok(events)
    }

    /// Moves waiting requests to running ones while there are slots and pages for their prompts. Those that run
    /// already take their pages first.
    fn admit(&mut self) -> Result<(), B::Error> {
        for i in 0..self.running.len() {
            let ends = self.ends(&self.running[i]);
            let seq = &mut self.running[i];
            let len = seq.len();
            if !ends && !self.cache.reserve(&mut seq.cache, len) {
                return Ok(());
            }
        }
        while let Some(place) = self.next_to_begin() {
            let Some(Waiting { id, request, past }) = self.waiting.remove(place) else { return Ok(()) };
            let Some(past) = past.or_else(|| self.cache.open().map(Kept::new)) else { return Ok(()) };
            self.start(id, request, past)?;
        }
        Ok(())
    }

    /// The place of the waiting request that can begin: the first one, or, when nothing runs that would make room for it,
    /// another, whose past may be what is in its way.
    fn next_to_begin(&self) -> Option<usize> {
        let n = if self.running.is_empty() { self.waiting.len() } else { self.waiting.len().min(1) };
        let can_begin = |Waiting { request, past, .. }: &Waiting| match past {
            Some(past) => past.has_room(&self.cache, &request.prompt),
            None => self.cache.has_room(request.prompt.len()),
        };
        self.waiting.iter().take(n).position(can_begin)
    }

    /// Lets a request run, on what its past has of its prompt.
    fn start(&mut self, id: SeqId, request: Request, mut past: Kept) -> Result<(), B::Error> {
        let reused = past.rewind_to(self.backend, &mut self.cache, &request.prompt)?;
        let Kept { mut cache, mut snapshots, .. } = past;
        let reserved = self.cache.reserve(&mut cache, request.prompt.len());
        debug_assert!(reserved, "next_to_begin");
        snapshots.clear();
        if request.keep && reused > 0 {
            snapshots.push(self.cache.snapshot(self.backend, &cache)?);
        }
        let (tokens, sampler) = (request.prompt.clone(), Sampler::new(&request.sampling));
        let (in_flight, row) = (0, 0);
        let seq = Sequence { id, request, tokens, sampler, cache, snapshots, reused, in_flight, row };
        self.running.push(seq);
        Ok(())
    }

    /// Chooses the rows of a step: decode rows first, then prompts, under the token budget. A sequence that gets
    /// no page waits.
    fn pick(&mut self) -> Vec<Pick> {
        let mut budget = self.config.max_batched_tokens;
        let mut picks = Vec::new();
        let decodes = |seq: &Sequence| seq.pending() == 1;
        let going = || (0..self.running.len()).filter(|&i| !self.ends(&self.running[i]));
        let order = going().filter(|&i| decodes(&self.running[i]));
        let prompts = going().filter(|&i| !decodes(&self.running[i]));
        for i in order.chain(prompts).collect::<Vec<_>>() {
            let seq = &mut self.running[i];
            let n = seq.pending().min(budget);
            let len = seq.cache.len + n;
            if n > 0 && self.cache.reserve(&mut seq.cache, len) {
                budget -= n;
                picks.push((i, n));
            }
        }
        picks
    }

    /// When nobody can go on, the youngest sequence gives its pages to the others.
    fn fail_one_without_pages(&mut self) -> Option<Event> {
        let seq = self.running.last()?;
        let (id, tokens) = (seq.id, seq.tokens.len());
        let error = SequenceError::OutOfPages { tokens, pool_tokens: self.config.pool_tokens };
        self.release(self.running.len() - 1, false);
        Some(Event::Failed { id, error })
    }

    /// When nothing runs and nothing can begin, kept texts are in the way.
    fn fail_one_without_room(&mut self) -> Option<Event> {
        let Waiting { id, past, .. } = self.waiting.pop_front()?;
        self.put_away(id, past, true);
        Some(Event::Failed { id, error: SequenceError::NoRoom { kept: self.kept.len() } })
    }

    fn finish_reason(&self, i: usize, token: u32) -> Option<FinishReason> {
        let seq = &self.running[i];
        if seq.request.eos.contains(&token) {
            return Some(FinishReason::Stop);
        }
        self.is_full(seq, seq.tokens.len()).then_some(FinishReason::Length)
    }

    /// Whether a text ends when it has `len` tokens, whatever they are.
    fn is_full(&self, seq: &Sequence, len: usize) -> bool {
        let full = len >= self.config.max_context || !self.cache.can_hold(len);
        full || len - seq.request.prompt.len() >= seq.request.max_tokens
    }

    fn cache_use(&self, i: usize) -> CacheUse {
        let Sequence { cache, reused, .. } = &self.running[i];
        CacheUse {
            used: self.cache.bytes(cache),
            allocated: self.cache.allocated(cache),
            tokens: cache.len,
            reused: *reused,
        }
    }

    fn release(&mut self, i: usize, keep: bool) -> CacheUse {
        self.take_back(i);
        let used = self.cache_use(i);
        let Sequence { id, tokens, cache, snapshots, .. } = self.running.remove(i);
        self.put_away(id, Some(Kept { tokens, cache, snapshots }), keep);
        used
    }

    /// Runs the tokens of sequence `i` once more, alone and over an unquantized cache, and says after which part
    /// of the model a value is not finite first.
    fn first_not_finite(&self, i: usize) -> Result<String, StepError<B::Error>> {
        const WEIGHTS: &str = "the weights are damaged or overflow";
        let found = self.model.first_not_finite(
            self.backend,
            &self.running[i].tokens,
            self.config.cache.base().kv_dtype(),
        )?;
        Ok(match found {
            Some(0) => format!("the embedding is the first part whose output is not; {WEIGHTS}"),
            Some(part) if part > self.model.config().n_layers => {
                format!("every layer's output is finite, the output head's is not; {WEIGHTS}")
            }
            Some(part) => format!("layer {} is the first whose output is not; {WEIGHTS}", part - 1),
            None => {
                "they are over a cache that is not quantized; what is in this one is damaged or overflows"
                    .to_owned()
            }
        })
    }
}
