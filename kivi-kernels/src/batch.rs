//! One step of a ragged batch: who is in it, how long each sequence is, where its cache lies.

use std::collections::HashSet;

use kivi_quant::{KiviConfig, Packed};

use crate::ops::{Draw, Planned};
use crate::{Backend, Patch, StepError, StepKey, Words};

/// Fixed sizes of a [`Batch`]'s device arrays.
#[derive(Clone, Debug)]
pub struct BatchCapacity {
    /// Sequences of a step.
    pub max_seqs: usize,
    /// Rows (new tokens) of a step.
    pub max_tokens: usize,
    /// Pages of a sequence, for each cache group.
    pub max_pages: Vec<usize>,
    /// Pages of the pools of each cache group: page tables have numbers below.
    pub n_pages: Vec<usize>,
    /// Rings: slots have numbers below.
    pub n_slots: usize,
}

/// One sequence's part in a step.
#[derive(Clone, Debug)]
pub struct SeqStep<'a> {
    /// The new tokens, one row each; at least one.
    pub tokens: &'a [u32],
    /// Tokens in the cache before the step.
    pub len: usize,
    /// A sequence that is not active computes nothing: its rows are zero and its cache stays as it is.
    pub active: bool,
    /// Its place in each cache group.
    pub groups: Vec<GroupStep<'a>>,
}

/// A sequence's place in one cache group.
#[derive(Clone, Debug)]
pub struct GroupStep<'a> {
    /// Its ring and sinks; no other active sequence of the step has them.
    pub slot: usize,
    /// Its pages, in order of their tokens; they must hold what is packed after the step. With a window, a page
    /// whose tokens are all packed and seen by no new token is never read: any page may stand in its place.
    pub pages: &'a [u32],
    /// What is packed before the step.
    pub packed: Packed,
    /// What is packed after it.
    pub packed_next: Packed,
}

/// What one step does, before it is checked.
#[derive(Clone, Debug, Default)]
pub struct StepPlan<'a> {
    /// The sequences, in the order of their rows.
    pub seqs: Vec<SeqStep<'a>>,
}

/// A plan that does not fit the batch or the cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step: sequence {seq}: {what} needs {expected}, got {found}")]
pub struct PlanError {
    /// The sequence at fault.
    pub seq: usize,
    /// What is wrong.
    pub what: &'static str,
    /// What it needs.
    pub expected: String,
    /// What was given.
    pub found: usize,
}

/// Device arrays of one cache group, one entry a sequence.
pub struct GroupArrays<B: Backend> {
    /// Tokens with packed keys before the step.
    pub k_packed: B::Buffer<u32>,
    /// Tokens with packed values before the step.
    pub v_packed: B::Buffer<u32>,
    /// Tokens with packed keys after the step.
    pub k_packed_next: B::Buffer<u32>,
    /// Tokens with packed values after the step.
    pub v_packed_next: B::Buffer<u32>,
    /// Slot of the rings and sinks.
    pub slots: B::Buffer<u32>,
    /// Page tables `[max_seqs][max_pages]`.
    pub page_table: B::Buffer<u32>,
    /// Room for what [`crate::ops::PlanAttend`] leaves: [`Backend::attend_plan_words`] words.
    pub plan: B::Buffer<u32>,
    /// For which ops it did, in the planned step.
    pub(crate) planned: Option<Planned>,
    /// Row length of `page_table`.
    pub max_pages: usize,
    /// The group's settings.
    pub config: KiviConfig,
    /// Page tables have numbers below.
    pub(crate) n_pages: usize,
    /// The host's copy of `page_table`: what need not be written again. Empty where that is not known.
    tables: Vec<Vec<u32>>,
}

/// Device arrays of a step, with fixed capacity, and what the host knows of it.
pub struct Batch<B: Backend> {
    capacity: BatchCapacity,
    n_seqs: usize,
    n_tokens: usize,
    max_new: usize,
    max_len: usize,
    lens: Vec<usize>,
    row_starts: Vec<usize>,
    /// Token of each row.
    pub tokens: B::Buffer<u32>,
    /// Position of each row in its sequence: `len + i` for its `i`-th new token.
    pub positions: B::Buffer<u32>,
    /// Sequence of each row.
    pub seq_of_row: B::Buffer<u32>,
    /// First row of each sequence, and the number of rows: `[max_seqs + 1]`.
    pub row_start: B::Buffer<u32>,
    /// Last row of each sequence.
    pub last_row: B::Buffer<u32>,
    /// Tokens in the cache before the step.
    pub len: B::Buffer<u32>,
    /// 1 where the sequence takes part, else 0.
    pub active: B::Buffer<u32>,
    /// Room for the token that is chosen for each sequence, from which [`Self::plan_ahead`] takes those of the next step.
    pub chosen: B::Buffer<u32>,
    /// The words of each sequence's [`Draw`], where the step has draws.
    pub draws: B::Buffer<u32>,
    /// One entry a cache group.
    pub groups: Vec<GroupArrays<B>>,
}

impl<B: Backend> Batch<B> {
    /// Allocates the arrays; `configs` has the settings of each cache group.
    ///
    /// # Errors
    /// Those of [`Backend::zeros`].
    pub fn new(backend: &B, capacity: BatchCapacity, configs: &[KiviConfig]) -> Result<Self, B::Error> {
        let (seqs, tokens) = (capacity.max_seqs, capacity.max_tokens);
        let pages = capacity.max_pages.iter().zip(&capacity.n_pages);
        let groups = configs.iter().zip(pages).map(|(&config, (&max_pages, &n_pages))| {
            Ok(GroupArrays {
                k_packed: backend.zeros(seqs)?,
                v_packed: backend.zeros(seqs)?,
                k_packed_next: backend.zeros(seqs)?,
                v_packed_next: backend.zeros(seqs)?,
                slots: backend.zeros(seqs)?,
                page_table: backend.zeros(seqs.saturating_mul(max_pages))?,
                plan: backend.zeros(backend.attend_plan_words())?,
                planned: None,
                max_pages,
                config,
                n_pages,
                tables: Vec::new(),
            })
        });
        Ok(Self {
            n_seqs: 0,
            n_tokens: 0,
            max_new: 0,
            max_len: 0,
            lens: Vec::new(),
            row_starts: vec![0],
            tokens: backend.zeros(tokens)?,
            positions: backend.zeros(tokens)?,
            seq_of_row: backend.zeros(tokens)?,
            row_start: backend.zeros(seqs.saturating_add(1))?,
            last_row: backend.zeros(seqs)?,
            len: backend.zeros(seqs)?,
            active: backend.zeros(seqs)?,
            chosen: backend.zeros(seqs)?,
            draws: backend.zeros(seqs.saturating_mul(Draw::WORDS))?,
            groups: groups.collect::<Result<_, B::Error>>()?,
            capacity,
        })
    }

    /// Sequences of the planned step.
    pub fn n_seqs(&self) -> usize {
        self.n_seqs
    }

    /// Rows of the planned step.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Most new tokens that one sequence has.
    pub fn max_new(&self) -> usize {
        self.max_new
    }

    /// Longest cache before the step.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// The host's copy of `len`: for launch sizes only, a replayed step reads device memory.
    pub fn host_lens(&self) -> &[usize] {
        &self.lens
    }

    /// The host's copy of `row_start`.
    pub fn host_row_starts(&self) -> &[usize] {
        &self.row_starts
    }

    /// The arrays' capacity.
    pub fn capacity(&self) -> &BatchCapacity {
        &self.capacity
    }

    /// Whether [`crate::ops::PlanAttend`] ran in the planned step, for a cache group.
    pub fn attention_is_planned(&self, group: usize) -> bool {
        self.groups[group].planned.is_some()
    }

    /// The key under which the planned step may be recorded, in this `variant`.
    pub fn key(&self, variant: u32) -> StepKey {
        StepKey { n_seqs: self.n_seqs, n_tokens: self.n_tokens, max_new: self.max_new, variant }
    }

    /// Checks `plan` and writes it to the device, in one [`Backend::patch`].
    ///
    /// # Errors
    /// [`StepError::Plan`] (nothing is written then), or a failure of the device.
    pub fn plan(&mut self, backend: &B, plan: &StepPlan<'_>) -> Result<(), StepError<B::Error>> {
        self.plan_ahead(backend, plan, &[], &[])
    }

    /// [`Self::plan`], before the host knows all tokens: where `from` has a row for a sequence, its first token is the one that
    /// [`Self::chosen`] has there, whatever the plan says; it was chosen by the step before. `draws` says how the sequences' tokens
    /// are drawn; it is empty if they are not.
    ///
    /// # Errors
    /// As for [`Self::plan`].
    pub fn plan_ahead(
        &mut self,
        backend: &B,
        plan: &StepPlan<'_>,
        from: &[Option<usize>],
        draws: &[Draw],
    ) -> Result<(), StepError<B::Error>> {
        self.check(plan, from)?;
        let n = plan.seqs.len();
        if draws.len() > n {
            let (what, expected) = ("its draw", format!("at most {n} draws"));
            return Err(PlanError { seq: n, what, expected, found: draws.len() }.into());
        }
        self.mirror(plan);
        self.groups.iter_mut().for_each(|arrays| arrays.planned = None);
        let changes: Vec<_> =
            self.groups.iter_mut().enumerate().map(|(g, arrays)| arrays.changes(plan, g)).collect();
        let written = backend.patch(self.patches(plan, from, draws, changes));
        if written.is_err() {
            self.groups.iter_mut().for_each(|arrays| arrays.tables.clear());
        }
        Ok(written?)
    }

    /// All that the device is to know of a step; `changes` are those of the page tables.
    fn patches<'a>(
        &'a mut self,
        plan: &StepPlan<'_>,
        from: &[Option<usize>],
        draws: &[Draw],
        changes: Vec<Changes>,
    ) -> Vec<Patch<'a, B>> {
        let rows = || {
            plan.seqs.iter().enumerate().flat_map(|(s, seq)| (0..seq.tokens.len()).map(move |i| (s, seq, i)))
        };
        let of_seqs = |f: &dyn Fn(&SeqStep<'_>) -> usize| -> Vec<u32> {
            plan.seqs.iter().map(|seq| f(seq) as u32).collect()
        };
        let starts = self.row_starts.iter().map(|&x| x as u32).collect();
        let last = self.row_starts[1..].iter().map(|&x| x as u32 - 1).collect();
        let tokens = token_parts(plan, (&self.row_starts, from), &self.chosen);
        let mut patches = vec![
            Patch { dst: &mut self.tokens, parts: tokens },
            Patch::whole(&mut self.positions, rows().map(|(_, seq, i)| (seq.len + i) as u32).collect()),
            Patch::whole(&mut self.seq_of_row, rows().map(|(s, ..)| s as u32).collect()),
            Patch::whole(&mut self.row_start, starts),
            Patch::whole(&mut self.last_row, last),
            Patch::whole(&mut self.len, of_seqs(&|seq| seq.len)),
            Patch::whole(&mut self.active, of_seqs(&|seq| usize::from(seq.active))),
            Patch::whole(&mut self.draws, draws.iter().flat_map(|draw| draw.to_words()).collect()),
        ];
        for (g, (arrays, changes)) in self.groups.iter_mut().zip(changes).enumerate() {
            let parts = changes.into_iter().map(|(at, pages)| (at, Words::Host(pages))).collect();
            patches.extend([
                Patch::whole(&mut arrays.k_packed, of_seqs(&|seq| seq.groups[g].packed.k)),
                Patch::whole(&mut arrays.v_packed, of_seqs(&|seq| seq.groups[g].packed.v)),
                Patch::whole(&mut arrays.k_packed_next, of_seqs(&|seq| seq.groups[g].packed_next.k)),
                Patch::whole(&mut arrays.v_packed_next, of_seqs(&|seq| seq.groups[g].packed_next.v)),
                Patch::whole(&mut arrays.slots, of_seqs(&|seq| seq.groups[g].slot)),
                Patch { dst: &mut arrays.page_table, parts },
            ]);
        }
        patches
    }

    fn mirror(&mut self, plan: &StepPlan<'_>) {
        self.n_seqs = plan.seqs.len();
        self.lens = plan.seqs.iter().map(|seq| seq.len).collect();
        self.row_starts = vec![0];
        let mut rows = 0;
        self.row_starts.extend(plan.seqs.iter().map(|seq| {
            rows += seq.tokens.len();
            rows
        }));
        self.n_tokens = rows;
        self.max_new = plan.seqs.iter().map(|seq| seq.tokens.len()).max().unwrap_or(0);
        self.max_len = self.lens.iter().copied().max().unwrap_or(0);
    }

    fn check(&self, plan: &StepPlan<'_>, from: &[Option<usize>]) -> Result<(), PlanError> {
        let mut rows = 0;
        let mut slots = HashSet::new();
        for (s, seq) in plan.seqs.iter().enumerate() {
            rows += seq.tokens.len();
            let fail = |what, expected: String, found| Err(PlanError { seq: s, what, expected, found });
            if s >= self.capacity.max_seqs {
                return fail("the batch", format!("at most {} sequences", self.capacity.max_seqs), s + 1);
            }
            if seq.tokens.is_empty() || rows > self.capacity.max_tokens {
                return fail(
                    "the new tokens",
                    format!("1 to {} rows in all", self.capacity.max_tokens),
                    rows,
                );
            }
            if seq.len > u32::MAX as usize - seq.tokens.len() {
                return fail("the cache", format!("fewer than {} tokens", u32::MAX), seq.len);
            }
            if seq.groups.len() != self.groups.len() {
                return fail("the cache", format!("{} groups", self.groups.len()), seq.groups.len());
            }
            if let Some(row) = from.get(s).copied().flatten().filter(|&row| row >= self.capacity.max_seqs) {
                return fail("its token's row", format!("one below {}", self.capacity.max_seqs), row);
            }
            for (g, (arrays, group)) in self.groups.iter().zip(&seq.groups).enumerate() {
                check_group(s, seq, (arrays.max_pages, arrays.n_pages), &arrays.config, group)?;
                if group.slot >= self.capacity.n_slots {
                    return fail("the slot", format!("one below {}", self.capacity.n_slots), group.slot);
                }
                if seq.active && !slots.insert((g, group.slot)) {
                    return fail("the slot", "one that no other active sequence has".into(), group.slot);
                }
            }
        }
        Ok(())
    }
}

fn check_group(
    s: usize,
    seq: &SeqStep<'_>,
    (max_pages, n_pages): (usize, usize),
    config: &KiviConfig,
    group: &GroupStep<'_>,
) -> Result<(), PlanError> {
    let fail = |what, expected: String, found| Err(PlanError { seq: s, what, expected, found });
    let ring = config.ring_rows();
    let end = seq.len + seq.tokens.len();
    let sides = [
        ("packed keys", group.packed.k, group.packed_next.k, ring.k, config.k_bits().is_quantized()),
        ("packed values", group.packed.v, group.packed_next.v, ring.v, config.v_bits().is_quantized()),
    ];
    for (what, now, next, ring, quantized) in sides {
        if now > seq.len || seq.len - now > ring {
            return fail(what, format!("the last {ring} of {} tokens at most unpacked", seq.len), now);
        }
        if next < now || next > end || end - next > ring {
            return fail(what, format!("from {now} to {end} after the step, at most {ring} unpacked"), next);
        }
        let key_groups = what == "packed keys" && quantized;
        if key_groups && (now % config.group_size() != 0 || next % config.group_size() != 0) {
            return fail(what, format!("multiples of the group size {}", config.group_size()), next);
        }
    }
    let pages = group.packed_next.k.max(group.packed_next.v).div_ceil(config.page_tokens());
    if group.pages.len() < pages || group.pages.len() > max_pages {
        return fail("the page table", format!("{pages} to {max_pages} pages"), group.pages.len());
    }
    let unknown = group.pages.iter().find(|&&page| page as usize >= n_pages);
    unknown.map_or(Ok(()), |&page| fail("the page table", format!("pages below {n_pages}"), page as usize))
}

/// The tokens of each row: runs of those that the host knows, and between them those that the device chose.
fn token_parts<'a, B: Backend>(
    plan: &StepPlan<'_>,
    (row_starts, from): (&[usize], &[Option<usize>]),
    chosen: &'a B::Buffer<u32>,
) -> Vec<(usize, Words<'a, B>)> {
    let mut parts = Vec::new();
    let mut known = (0, Vec::new());
    for (s, (seq, &row)) in plan.seqs.iter().zip(row_starts).enumerate() {
        let place = from.get(s).copied().flatten();
        if let Some(place) = place {
            parts.push((row, Words::Chosen(chosen, place)));
            let (at, words) = std::mem::replace(&mut known, (row + 1, Vec::new()));
            parts.push((at, Words::Host(words)));
        }
        known.1.extend(&seq.tokens[usize::from(place.is_some())..]);
    }
    parts.push((known.0, Words::Host(known.1)));
    parts
}

/// Places in a buffer, and what is new there.
type Changes = Vec<(usize, Vec<u32>)>;

impl<B: Backend> GroupArrays<B> {
    /// What the device's page tables lack, group `g` of `plan`; from here on the mirror has it.
    fn changes(&mut self, plan: &StepPlan<'_>, g: usize) -> Changes {
        let mut changes = Vec::new();
        self.tables.resize(self.tables.len().max(plan.seqs.len()), Vec::new());
        for (s, (seq, table)) in plan.seqs.iter().zip(&mut self.tables).enumerate() {
            let pages = seq.groups[g].pages;
            let same = table.iter().zip(pages).take_while(|(x, y)| x == y).count();
            if same < pages.len() {
                table.truncate(same);
                table.extend(&pages[same..]);
                changes.push((s * self.max_pages + same, pages[same..].to_vec()));
            }
        }
        changes
    }
}

impl<'a, B: Backend> Patch<'a, B> {
    /// From the first element on.
    fn whole(dst: &'a mut B::Buffer<u32>, words: Vec<u32>) -> Self {
        Self { dst, parts: vec![(0, Words::Host(words))] }
    }
}
