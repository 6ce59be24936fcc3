//! The cache and the step of a [`CacheCase`] on a backend, made on the host: pages scattered, slots out of order,
//! everything that is nobody's full of large numbers.

use kivi_kernels::{Backend, Batch, BatchCapacity, DType, GroupStep, KvLayer, SeqStep, StepError, StepPlan};
use kivi_quant::{Packed, PageLayout, Side, page};

use super::{CacheCase, Rng};

/// Words of pages that nobody may use: 65504 as f16, finite in every type, as what other sequences leave behind.
const GARBAGE: u32 = 0x7BFF_7BFF;
/// Words of ring and sink rows that no token is in: NaN in every type, as a sequence whose model fails leaves behind.
const NAN: u32 = 0x7FFF_7FFF;

/// Where the sequences of a case live.
pub(super) struct Places {
    pub pages: Vec<Vec<u32>>,
    pub slots: Vec<u32>,
    pub n_pages: usize,
    /// A page of no sequence.
    pub spare: u32,
}

/// The arrays of a [`KvLayer`] on the host.
struct HostCache {
    layout: PageLayout,
    n_kv_heads: usize,
    pool: Vec<u32>,
    /// Keys, then values.
    rings: [Vec<u32>; 2],
    sinks: [Vec<u32>; 2],
}

/// One sequence's rows on the way into a [`HostCache`].
struct Stored<'a> {
    rows: &'a [f32],
    len: usize,
    packed: usize,
    pages: &'a [u32],
    slot: usize,
}

fn at(side: Side) -> usize {
    usize::from(side == Side::Value)
}

fn of(packed: Packed, side: Side) -> usize {
    if side == Side::Key { packed.k } else { packed.v }
}

impl HostCache {
    /// Stores `head` of one side of a sequence, token by token and group by group.
    fn store(&mut self, side: Side, head: usize, seq: &Stored<'_>) {
        let (layout, config) = (self.layout, *self.layout.config());
        let (d, page_tokens) = (layout.head_dim(), config.page_tokens());
        let cols = self.n_kv_heads * d;
        let row = |t: usize| &seq.rows[t * cols + head * d..][..d];
        let sinks = config.sink_tokens();
        let quantized = layout.bits(side).is_quantized();
        for t in 0..seq.packed {
            let record = seq.pages[t / page_tokens] as usize * self.n_kv_heads + head;
            let page = &mut self.pool[record * layout.page_words()..][..layout.page_words()];
            match side {
                _ if !quantized => page::put_row(&layout, side, page, t % page_tokens, row(t)),
                Side::Key if t % config.group_size() == 0 => {
                    let group: Vec<f32> = (t..t + config.group_size()).flat_map(row).copied().collect();
                    let skip = sinks.saturating_sub(t).min(config.group_size());
                    page::pack_keys(&layout, page, t % page_tokens, &group, skip);
                }
                Side::Value if t >= sinks => page::pack_value(&layout, page, t % page_tokens, row(t)),
                _ => {}
            }
        }
        let words = layout.row_words();
        let slot = seq.slot * self.n_kv_heads + head;
        let residual = config.residual_length();
        for t in seq.packed..seq.len {
            let place = (slot * residual + t % residual) * words;
            page::store_row(config.kv_dtype(), row(t), &mut self.rings[at(side)][place..place + words]);
        }
        for t in 0..if quantized { seq.len.min(sinks) } else { 0 } {
            let place = (slot * sinks + t) * words;
            page::store_row(config.kv_dtype(), row(t), &mut self.sinks[at(side)][place..place + words]);
        }
    }
}

impl CacheCase {
    /// Pages and slots of each sequence, scattered.
    pub(super) fn places(&self) -> Places {
        let needs = self.seqs.iter().map(|seq| {
            let next = seq.packed(&self.config).1;
            next.k.max(next.v).div_ceil(self.config.page_tokens())
        });
        let needs: Vec<usize> = needs.collect();
        let n_pages = needs.iter().sum::<usize>() + 2;
        let mut rng = Rng::new(self.seed + 77);
        let mut free = rng.permutation(n_pages);
        let pages = needs.iter().map(|&n| free.split_off(free.len() - n)).collect();
        Places { pages, slots: rng.permutation(self.n_slots()), n_pages, spare: free[0] }
    }

    fn n_slots(&self) -> usize {
        self.seqs.len() + 1
    }

    /// The cache before the step.
    ///
    /// # Errors
    /// Those of the device.
    pub fn layer<B: Backend>(&self, backend: &B, act: DType) -> Result<KvLayer<B>, StepError<B::Error>> {
        self.layer_at(backend, act, false)
    }

    /// The cache as it should be after the step.
    ///
    /// # Errors
    /// Those of the device.
    pub fn layer_after<B: Backend>(
        &self,
        backend: &B,
        act: DType,
    ) -> Result<KvLayer<B>, StepError<B::Error>> {
        self.layer_at(backend, act, true)
    }

    fn layer_at<B: Backend>(
        &self,
        backend: &B,
        act: DType,
        after: bool,
    ) -> Result<KvLayer<B>, StepError<B::Error>> {
        let (layout, places) = (self.layout(), self.places());
        let mut layer = KvLayer::new(backend, layout, self.n_kv_heads, places.n_pages, self.n_slots())?;
        let mut host = self.empty(&places);
        for (s, seq) in self.seqs.iter().enumerate() {
            let (now, next) = seq.packed(&self.config);
            let (len, packed) = if after && seq.active { (seq.end(), next) } else { (seq.len, now) };
            for side in [Side::Key, Side::Value] {
                let rows: Vec<f32> = self.rows(s, side, act).iter().map(|&x| x as f32).collect();
                let (pages, slot) = (&places.pages[s], places.slots[s] as usize);
                let stored = Stored { rows: &rows, len, packed: of(packed, side), pages, slot };
                (0..self.n_kv_heads).for_each(|head| host.store(side, head, &stored));
            }
        }
        backend.write(&mut layer.pool, 0, &host.pool)?;
        backend.write(&mut layer.k_ring, 0, &host.rings[0])?;
        backend.write(&mut layer.v_ring, 0, &host.rings[1])?;
        backend.write(&mut layer.k_sink, 0, &host.sinks[0])?;
        backend.write(&mut layer.v_sink, 0, &host.sinks[1])?;
        Ok(layer)
    }

    /// Garbage and NaN everywhere but in the sequences' own pages, which are zero.
    fn empty(&self, places: &Places) -> HostCache {
        let layout = self.layout();
        let record = self.n_kv_heads * layout.page_words();
        let mut pool = vec![GARBAGE; places.n_pages * record];
        for &page in places.pages.iter().flatten() {
            pool[page as usize * record..][..record].fill(0);
        }
        let rows = |n: usize| vec![NAN; self.n_slots() * self.n_kv_heads * n * layout.row_words()];
        let ring = self.config.ring_rows();
        let sinks = |ring: usize| rows(if ring > 0 { self.config.sink_tokens() } else { 0 });
        HostCache {
            layout,
            n_kv_heads: self.n_kv_heads,
            pool,
            rings: [rows(ring.k), rows(ring.v)],
            sinks: [sinks(ring.k), sinks(ring.v)],
        }
    }

    /// The step. The layer is in cache group 1; group 0 has other pages and slots.
    ///
    /// # Errors
    /// Those of the device and of the plan.
    pub fn batch<B: Backend>(&self, backend: &B) -> Result<Batch<B>, StepError<B::Error>> {
        let places = self.places();
        let rows = *self.row_starts().last().unwrap_or(&0);
        let max_pages = places.n_pages + 1;
        let capacity = BatchCapacity {
            max_seqs: self.seqs.len() + 1,
            max_tokens: rows + 1,
            max_pages: vec![max_pages, max_pages],
            n_pages: vec![max_pages, places.n_pages],
            n_slots: self.n_slots(),
        };
        let mut batch = Batch::new(backend, capacity, &[self.config, self.config])?;
        let tokens = vec![0; rows];
        let tables: Vec<Vec<u32>> = (0..self.seqs.len()).map(|s| self.table(s, &places)).collect();
        let decoys: Vec<Vec<u32>> =
            places.pages.iter().map(|p| p.iter().map(|&page| page ^ 1).collect()).collect();
        let seqs = self.seqs.iter().enumerate().map(|(s, seq)| {
            let (packed, packed_next) = seq.packed(&self.config);
            let group = |slot: u32, pages| GroupStep { slot: slot as usize, pages, packed, packed_next };
            let decoy = places.slots[(s + 1) % places.slots.len()];
            SeqStep {
                tokens: &tokens[..seq.new],
                len: seq.len,
                active: seq.active,
                groups: vec![group(decoy, &decoys[s]), group(places.slots[s], &tables[s])],
            }
        });
        let plan = StepPlan { seqs: seqs.collect() };
        batch.plan(backend, &plan)?;
        Ok(batch)
    }

    /// The page table of sequence `s`, with another page for each that is packed and before the window.
    fn table(&self, s: usize, places: &Places) -> Vec<u32> {
        let seq = &self.seqs[s];
        let packed = seq.packed(&self.config).0;
        let first = self.window.map_or(0, |window| (seq.len + 1).saturating_sub(window));
        let gone = first.min(packed.k).min(packed.v) / self.config.page_tokens();
        let mut pages = places.pages[s].clone();
        pages.iter_mut().take(gone).for_each(|page| *page = places.spare);
        pages
    }

    /// Everything in `layer`: pool, rings, sinks. Ring rows of active sequences that no token is in any more read
    /// as 0: a backend may leave there what it likes.
    ///
    /// # Errors
    /// Those of the device.
    pub fn words<B: Backend>(&self, backend: &B, layer: &KvLayer<B>) -> Result<Vec<u32>, B::Error> {
        let mut words = read(backend, &layer.pool)?;
        for (side, ring) in [(Side::Key, &layer.k_ring), (Side::Value, &layer.v_ring)] {
            let mut ring = read(backend, ring)?;
            self.blank_dead_rows(side, &mut ring);
            words.extend(ring);
        }
        words.extend(read(backend, &layer.k_sink)?);
        words.extend(read(backend, &layer.v_sink)?);
        Ok(words)
    }

    fn blank_dead_rows(&self, side: Side, ring: &mut [u32]) {
        let (words, residual) = (self.layout().row_words(), self.config.residual_length());
        if ring.is_empty() {
            return;
        }
        for (seq, &slot) in self.seqs.iter().zip(&self.places().slots).filter(|(seq, _)| seq.active) {
            let live = of(seq.packed(&self.config).1, side)..seq.end();
            let is_live = |row: usize| live.clone().any(|t| t % residual == row);
            for row in (0..residual).filter(|&row| !is_live(row)) {
                for head in 0..self.n_kv_heads {
                    let place = ((slot as usize * self.n_kv_heads + head) * residual + row) * words;
                    ring[place..place + words].fill(0);
                }
            }
        }
    }
}

fn read<B: Backend>(backend: &B, buffer: &B::Buffer<u32>) -> Result<Vec<u32>, B::Error> {
    let mut words = vec![0; kivi_kernels::Buffer::len(buffer)];
    backend.read(buffer, 0, &mut words)?;
    Ok(words)
}
