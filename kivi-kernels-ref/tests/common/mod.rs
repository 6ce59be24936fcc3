//! Sequences that grow step by step on one CPU backend, each in pages of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use kivi_kernels::{
    Backend, Batch, BatchCapacity, GroupStep, KvLayer, Rows, RowsMut, SeqStep, StepPlan, ops,
};
use kivi_kernels_ref::conformance::Rng;
use kivi_kernels_ref::{Accum, Cpu, CpuBuffer};
use kivi_quant::{Bits, GroupSize, KiviConfig, Packed, PageLayout, Side, page};

/// Queries, keys and values of a sequence, `[tokens][heads * head_dim]` each.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
}

/// What all sequences of a world have in common.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub config: KiviConfig,
    pub head_dim: usize,
    pub n_kv_heads: usize,
    pub gqa: usize,
}

impl Shape {
    pub fn layout(&self) -> PageLayout {
        PageLayout::new(self.config, self.head_dim).unwrap()
    }

    pub fn kv_cols(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    pub fn q_cols(&self) -> usize {
        self.gqa * self.kv_cols()
    }

    /// `n` random tokens, exact in every type.
    pub fn tokens(&self, n: usize, seed: u64) -> Tokens {
        let mut rng = Rng::new(seed);
        let exact = |x: f64| half::bf16::from_f64(x).to_f64();
        let mut normals = |cols: usize| rng.normals(n * cols, exact);
        Tokens { q: normals(self.q_cols()), k: normals(self.kv_cols()), v: normals(self.kv_cols()) }
    }
}

/// A 2-bit or other cache, two KV heads of 64 channels, two query heads each.
pub fn shape(k_bits: Bits, v_bits: Bits, group: usize, residual: usize) -> Shape {
    let config = KiviConfig::new(k_bits, v_bits, GroupSize::try_from(group).unwrap(), residual).unwrap();
    Shape { config, head_dim: 64, n_kv_heads: 2, gqa: 2 }
}

/// A backend, the cache of one layer, and the sequences in it.
pub struct World<A: Accum> {
    pub cpu: Cpu<A>,
    pub shape: Shape,
    pub layer: KvLayer<Cpu<A>>,
    batch: Batch<Cpu<A>>,
    sequences: Vec<Tokens>,
    pub lens: Vec<usize>,
    pages: Vec<Vec<u32>>,
}

impl<A: Accum> World<A> {
    /// Empty sequences that will have these tokens; pages are dealt out in turn.
    pub fn new(cpu: Cpu<A>, shape: Shape, sequences: Vec<Tokens>) -> Self {
        let n = sequences.len();
        let tokens = |s: &Tokens| s.k.len() / shape.kv_cols();
        let max_pages = sequences.iter().map(tokens).max().unwrap() / shape.config.page_tokens() + 1;
        let layer = KvLayer::new(&cpu, shape.layout(), shape.n_kv_heads, n * max_pages, n).unwrap();
        let max_tokens = sequences.iter().map(tokens).sum();
        let capacity = BatchCapacity {
            max_seqs: n,
            max_tokens,
            max_pages: vec![max_pages],
            n_pages: vec![max_pages * n],
            n_slots: n,
        };
        let batch = Batch::new(&cpu, capacity, &[shape.config]).unwrap();
        let page = |s: usize, i: usize| ((max_pages - 1 - i) * n + s) as u32;
        let pages = (0..n).map(|s| (0..max_pages).map(|i| page(s, i)).collect()).collect();
        Self { cpu, shape, layer, batch, lens: vec![0; n], sequences, pages }
    }

    /// One sequence alone.
    pub fn single(cpu: Cpu<A>, shape: Shape, tokens: &Tokens) -> Self {
        Self::new(cpu, shape, vec![tokens.clone()])
    }

    /// One step with `take[s]` new tokens of each sequence `s` (0: it is not in the batch): attend, then append.
    /// Returns the output rows, one sequence after the other.
    pub fn step(&mut self, take: &[usize]) -> Vec<f64> {
        let rows = self.attend(take);
        self.append(take);
        rows
    }

    /// The rows that are new in a step, of one kind.
    fn new_rows(&self, take: &[usize], cols: usize, of: fn(&Tokens) -> &Vec<f64>) -> CpuBuffer<A> {
        let rows = |s: usize| &of(&self.sequences[s])[self.lens[s] * cols..(self.lens[s] + take[s]) * cols];
        let rows: Vec<A> = (0..take.len()).flat_map(rows).map(|&x| A::from_f64(x)).collect();
        self.cpu.upload(&rows).unwrap()
    }

    /// The first half of a step.
    fn attend(&mut self, take: &[usize]) -> Vec<f64> {
        self.plan(take);
        let (q_cols, kv_cols, n) = (self.shape.q_cols(), self.shape.kv_cols(), take.iter().sum());
        let q = self.new_rows(take, q_cols, |t| &t.q);
        let (k, v) = (self.new_rows(take, kv_cols, |t| &t.k), self.new_rows(take, kv_cols, |t| &t.v));
        let new = (Rows::new(&k, n, kv_cols).unwrap(), Rows::new(&v, n, kv_cols).unwrap());
        let mut out = self.cpu.zeros(n * q_cols).unwrap();
        let views = (RowsMut::new(&mut out, n, q_cols).unwrap(), Rows::new(&q, n, q_cols).unwrap());
        let scale = 1.0 / (self.shape.head_dim as f32).sqrt();
        let op = ops::Attend::new(views.0, views.1, new, &self.layer, (&self.batch, 0), scale);
        self.cpu.attend(op.unwrap()).unwrap();
        let mut rows = vec![A::from_f64(0.0); n * q_cols];
        self.cpu.read(&out, 0, &mut rows).unwrap();
        rows.iter().map(|x| x.to_f64()).collect()
    }

    /// The second half of a step; alone, a step whose outputs nobody asks for.
    pub fn append(&mut self, take: &[usize]) {
        self.plan(take);
        let (kv_cols, n) = (self.shape.kv_cols(), take.iter().sum());
        let (k, v) = (self.new_rows(take, kv_cols, |t| &t.k), self.new_rows(take, kv_cols, |t| &t.v));
        let new = (Rows::new(&k, n, kv_cols).unwrap(), Rows::new(&v, n, kv_cols).unwrap());
        let op = ops::Append::new(new, &mut self.layer, (&self.batch, 0));
        self.cpu.append(op.unwrap()).unwrap();
        self.lens.iter_mut().zip(take).for_each(|(len, n)| *len += n);
    }

    fn plan(&mut self, take: &[usize]) {
        let chosen: Vec<usize> = (0..take.len()).filter(|&s| take[s] > 0).collect();
        let ids = vec![0; take.iter().sum()];
        let config = &self.shape.config;
        let seqs = chosen.iter().map(|&s| SeqStep {
            tokens: &ids[..take[s]],
            len: self.lens[s],
            active: true,
            groups: vec![GroupStep {
                slot: s,
                pages: &self.pages[s],
                packed: config.packed(self.lens[s]),
                packed_next: config.packed(self.lens[s] + take[s]),
            }],
        });
        self.batch.plan(&self.cpu, &StepPlan { seqs: seqs.collect() }).unwrap();
    }

    /// What is packed of sequence `s`.
    pub fn packed(&self, s: usize) -> Packed {
        self.shape.config.packed(self.lens[s])
    }

    /// One head's part of the page of `token`.
    pub fn page(&self, s: usize, head: usize, token: usize) -> Vec<u32> {
        let record =
            self.pages[s][token / self.shape.config.page_tokens()] as usize * self.shape.n_kv_heads + head;
        let words = self.shape.layout().page_words();
        self.words(&self.layer.pool, record * words, words)
    }

    fn words(&self, buffer: &<Cpu<A> as Backend>::Buffer<u32>, start: usize, n: usize) -> Vec<u32> {
        let mut words = vec![0; n];
        self.cpu.read(buffer, start, &mut words).unwrap();
        words
    }

    /// All that the cache holds of sequence `s`, wherever it lies: its pages, its live ring rows by token, its sinks.
    pub fn contents(&self, s: usize) -> Vec<u32> {
        let (shape, len, packed) = (self.shape, self.lens[s], self.packed(s));
        let words = shape.layout().row_words();
        let (residual, sinks) = (shape.config.residual_length(), shape.config.sink_tokens());
        let mut all = Vec::new();
        for head in 0..shape.n_kv_heads {
            let starts = (0..packed.k.max(packed.v)).step_by(shape.config.page_tokens());
            all.extend(starts.flat_map(|token| self.page(s, head, token)));
            for (ring, sink, packed) in [
                (&self.layer.k_ring, &self.layer.k_sink, packed.k),
                (&self.layer.v_ring, &self.layer.v_sink, packed.v),
            ] {
                let slot = s * shape.n_kv_heads + head;
                let row = |t: usize| self.words(ring, (slot * residual + t % residual) * words, words);
                all.extend((packed..len).flat_map(row));
                if kivi_kernels::Buffer::len(sink) > 0 {
                    let row = |t: usize| self.words(sink, (slot * sinks + t) * words, words);
                    all.extend((0..sinks.min(len)).flat_map(row));
                }
            }
        }
        all
    }

    /// The packed row of `token`, dequantized.
    pub fn packed_row(&self, s: usize, side: Side, head: usize, token: usize) -> Vec<f64> {
        let mut row = vec![0.0; self.shape.head_dim];
        let token_in_page = token % self.shape.config.page_tokens();
        page::read_row(&self.shape.layout(), side, &self.page(s, head, token), token_in_page, &mut row);
        row.into_iter().map(f64::from).collect()
    }
}

/// Attention by definition: one query `[head_dim]` over rows, softmax in f64.
pub fn dense(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let scale = f64::from(1.0 / (q.len() as f32).sqrt());
    let logit = |k: &Vec<f64>| scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
    let logits: Vec<f64> = keys.iter().map(logit).collect();
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let p: Vec<f64> = logits.iter().map(|x| (x - largest).exp()).collect();
    let total: f64 = p.iter().sum();
    let channel = |c: usize| p.iter().zip(values).map(|(p, v)| p * v[c]).sum::<f64>() / total;
    (0..q.len()).map(channel).collect()
}

/// The largest difference.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
