//! Steps that come again, recorded or not: sequences come and go, pages change hands, keys become due, and each token is the
//! one that the step before chose or drew on the device.

use kivi_kernels::ops::Draw;
use kivi_kernels::{
    Backend, Batch, BatchCapacity, DType, Element, GroupStep, KvLayer, Rows, RowsMut, SeqStep, StepError,
    StepPlan, Weight, ops,
};
use kivi_quant::{Bits, GroupSize, KiviConfig, PageLayout};
use proptest::strategy::{BoxedStrategy, Strategy};

use super::{Case, Outcome, Rng, round};

const HEAD_DIM: usize = 64;
const N_KV_HEADS: usize = 2;
/// Columns of a row, and tokens that there are.
const COLS: usize = N_KV_HEADS * HEAD_DIM;
const PAGE_TOKENS: usize = 32;
/// Each attends, then appends, as the layers of a model do.
const LAYERS: usize = 2;
/// Every so many steps the host knows the tokens.
const KNOWN: usize = 5;
/// Every so many steps tokens are drawn, else they are the likeliest.
const DRAWN: usize = 2;

/// Decode steps of a few layers, each asked by what the one before gave.
#[derive(Clone, Debug)]
pub struct RecordCase {
    bits: Bits,
    /// The steps in which each sequence takes part.
    lives: Vec<(usize, usize)>,
    seed: u64,
}

/// A sequence that takes part.
#[derive(Default)]
struct Life {
    len: usize,
    pages: Vec<u32>,
    /// Its row in the step before.
    row: usize,
}

/// What steps run on.
struct World<B: Backend> {
    table: Weight<B>,
    layers: Vec<KvLayer<B>>,
    batch: Batch<B>,
    recordings: B::Recordings,
    rows: B::Buffer<B::Act>,
    attended: Vec<B::Buffer<B::Act>>,
    /// Pages of nobody; those that somebody had are to be cleared.
    free: Vec<(u32, bool)>,
}

impl RecordCase {
    fn config(&self) -> KiviConfig {
        let config = KiviConfig::new(self.bits, self.bits, GroupSize::G32, 32).expect("valid settings");
        config.with_page_tokens(PAGE_TOKENS).expect("a valid page")
    }

    fn world<B: Backend>(&self, backend: &B, act: DType) -> Result<World<B>, StepError<B::Error>> {
        let (config, n) = (self.config(), self.lives.len());
        let layout = PageLayout::new(config, HEAD_DIM).expect("a valid head");
        let most = self.lives.iter().map(|(from, to)| config.pages(to - from)).max().unwrap_or(0);
        let n_pages = n * most;
        let capacity = BatchCapacity {
            max_seqs: n,
            max_tokens: n,
            max_pages: vec![most],
            n_pages: vec![n_pages],
            n_slots: n,
        };
        let table: Vec<f32> =
            Rng::new(self.seed).normals(COLS * COLS, |x| round(act, x)).iter().map(|&x| x as f32).collect();
        Ok(World {
            table: Weight::F32(backend.upload(&table)?),
            layers: (0..LAYERS)
                .map(|_| KvLayer::new(backend, layout, N_KV_HEADS, n_pages, n))
                .collect::<Result<_, _>>()?,
            batch: Batch::new(backend, capacity, &[config])?,
            recordings: B::Recordings::default(),
            rows: backend.zeros(n * COLS)?,
            attended: (0..LAYERS).map(|_| backend.zeros(n * COLS)).collect::<Result<_, _>>()?,
            free: (0..n_pages as u32).map(|page| (page, false)).collect(),
        })
    }
}

impl<B: Backend> World<B> {
    /// Gives a sequence the pages that it needs for one token more.
    fn reserve(&mut self, backend: &B, life: &mut Life, pages: usize) -> Result<(), StepError<B::Error>> {
        while life.pages.len() < pages {
            let (page, used) = self.free.pop().expect("enough for all");
            if used {
                let list = backend.upload(&[page])?;
                for layer in &mut self.layers {
                    backend.clear_pages(ops::ClearPages::new(layer, &list, 1)?)?;
                }
            }
            life.pages.push(page);
        }
        Ok(())
    }

    /// Tells the device what the step is about: `known` are the tokens, unless the step before chose them.
    fn plan(
        &mut self,
        backend: &B,
        lives: &[(usize, &Life)],
        known: Option<u32>,
        draws: &[Draw],
    ) -> Result<(), StepError<B::Error>> {
        let config = *self.layers[0].layout().config();
        let tokens = [known.unwrap_or(0)];
        let seqs = lives.iter().map(|&(slot, life)| {
            let (packed, packed_next) = (config.packed(life.len), config.packed(life.len + 1));
            let groups = vec![GroupStep { slot, pages: &life.pages, packed, packed_next }];
            SeqStep { tokens: &tokens, len: life.len, active: true, groups }
        });
        let chosen = |life: &Life| (known.is_none() && life.len > 0).then_some(life.row);
        let from: Vec<_> = lives.iter().map(|(_, life)| chosen(life)).collect();
        self.batch.plan_ahead(backend, &StepPlan { seqs: seqs.collect() }, &from, draws)
    }

    /// Queues the planned step: the token's row is the first query, key, value and logits.
    fn queue(&mut self, backend: &B, drawn: bool) -> Result<(), StepError<B::Error>> {
        let Self { table, layers, batch, recordings, rows, attended, .. } = self;
        let (n, key) = (batch.n_seqs(), batch.key(7 + u32::from(drawn)));
        backend.record(recordings, key, |backend| {
            backend.embed(ops::Embed::new(RowsMut::new(rows, n, COLS)?, table, &batch.tokens)?)?;
            let x = Rows::new(rows, n, COLS)?;
            let heads = COLS / layers[0].layout().head_dim();
            backend.plan_attend(ops::PlanAttend::new((batch, 0), &layers[0], heads, None)?)?;
            for (i, layer) in layers.iter_mut().enumerate() {
                let (done, next) = attended.split_at_mut(i);
                let query = Rows::new(done.last().unwrap_or(rows), n, COLS)?;
                let out = RowsMut::new(&mut next[0], n, COLS)?;
                backend.attend(ops::Attend::new(out, query, (x, x), layer, (batch, 0), 0.1)?)?;
                backend.append(ops::Append::new((x, x), layer, (batch, 0))?)?;
            }
            if drawn {
                backend.sample(ops::Sample::new(&mut batch.chosen, x, &batch.draws)?)?;
            } else {
                backend.argmax(ops::Argmax::new(&mut batch.chosen, x)?)?;
            }
            Ok(())
        })
    }

    /// Everything that the cache has.
    fn words(&self, backend: &B) -> Result<Vec<u32>, B::Error> {
        let mut all = Vec::new();
        let buffers = self.layers.iter().flat_map(|layer| [&layer.pool, &layer.k_ring, &layer.v_ring]);
        for buffer in buffers {
            let mut words = vec![0; kivi_kernels::Buffer::len(buffer)];
            backend.read(buffer, 0, &mut words)?;
            all.extend(words);
        }
        Ok(all)
    }
}

impl Case for RecordCase {
    const OP: &'static str = "record";

    fn by_hand() -> Vec<Self> {
        let lives = vec![(0, 70), (3, 40), (8, 30), (42, 74)];
        [Bits::B2, Bits::B16].map(|bits| Self { bits, lives: lives.clone(), seed: 5 }).into()
    }

    fn strategy() -> BoxedStrategy<Self> {
        let lives = proptest::collection::vec((0..6_usize, 1..40_usize), 1..4);
        let lives = lives.prop_map(|lives| lives.into_iter().map(|(from, n)| (from, from + n)).collect());
        let bits = proptest::sample::select(Bits::ALL.to_vec());
        (bits, lives, 0..1000_u64).prop_map(|(bits, lives, seed)| Self { bits, lives, seed }).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let (config, mut world) = (self.config(), self.world(backend, act)?);
        let mut lives: Vec<Life> = self.lives.iter().map(|_| Life::default()).collect();
        let (mut outcome, mut later) = (Outcome::default(), None);
        for step in 0..self.lives.iter().map(|life| life.1).max().unwrap_or(0) {
            let here: Vec<usize> =
                (0..lives.len()).filter(|&s| (self.lives[s].0..self.lives[s].1).contains(&step)).collect();
            for &s in &here {
                let pages = config.pages(lives[s].len + 1);
                world.reserve(backend, &mut lives[s], pages)?;
            }
            let known = (step % KNOWN == 0).then_some(step as u32);
            let planned: Vec<_> = here.iter().map(|&s| (s, &lives[s])).collect();
            let drawn = step % DRAWN == 1;
            let mut rng = Rng::new(self.seed + step as u64);
            let draw = |s: &usize| Draw { temperature: *s as f32, bits: rng.bits(), ..Draw::GREEDY };
            let draws = if drawn { here.iter().map(draw).collect() } else { Vec::new() };
            world.plan(backend, &planned, known, &draws)?;
            world.queue(backend, drawn)?;
            // What the step before chose is looked at when this one is queued.
            let chosen = later.replace(backend.read_later(&world.batch.chosen, here.len())?);
            outcome.words.extend(chosen.map(|later| backend.wait(later)).transpose()?.unwrap_or_default());
            if step % 8 == 7 {
                let mut out = vec![B::Act::from_f64(0.0); here.len() * COLS];
                backend.read(&world.attended[LAYERS - 1], 0, &mut out)?;
                outcome.values.extend(out.iter().map(|x| x.to_f64()));
            }
            for (row, &s) in here.iter().enumerate() {
                (lives[s].len, lives[s].row) = (lives[s].len + 1, row);
                if step + 1 == self.lives[s].1 {
                    world.free.extend(lives[s].pages.drain(..).map(|page| (page, true)));
                }
            }
        }
        outcome.words.extend(world.words(backend)?);
        Ok(outcome)
    }
}
