//! Attention over a packed cache and appending to it, on the CPU backend: one new token after 4,096.
//!
//! `cargo bench -p kivi-kernels-ref`; elements of `attend` are cached tokens, of `append` new ones.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kivi_kernels::{
    Backend, Batch, BatchCapacity, GroupStep, KvLayer, Rows, RowsMut, SeqStep, StepPlan, ops,
};
use kivi_kernels_ref::{Cpu, CpuBuffer};
use kivi_quant::{Bits, GroupSize, KiviConfig, PageLayout};

const LEN: usize = 4096;
const HEAD_DIM: usize = 128;
const KV_HEADS: usize = 8;
const HEADS: usize = 32;

/// One layer's cache of `LEN` random tokens, and the operands of a step.
struct World {
    cpu: Cpu<f32>,
    layer: KvLayer<Cpu<f32>>,
    batch: Batch<Cpu<f32>>,
    pages: Vec<u32>,
    config: KiviConfig,
}

impl World {
    fn new(bits: Bits) -> Self {
        let cpu = Cpu::<f32>::new();
        let config = KiviConfig::new(bits, bits, GroupSize::G32, 128).expect("a valid cache");
        let n_pages = config.pages(LEN + 128) + 1;
        let layout = PageLayout::new(config, HEAD_DIM).expect("a layout");
        let layer = KvLayer::new(&cpu, layout, KV_HEADS, n_pages, 1).expect("a cache");
        let capacity = BatchCapacity {
            max_seqs: 1,
            max_tokens: LEN,
            max_pages: vec![n_pages],
            n_pages: vec![n_pages],
            n_slots: 1,
        };
        let batch = Batch::new(&cpu, capacity, &[config]).expect("a batch");
        let mut world = Self { cpu, layer, batch, pages: (0..n_pages as u32).collect(), config };
        world.plan(0, LEN);
        world.append(&world.rows(LEN, KV_HEADS), LEN);
        world
    }

    /// A step of `n` tokens after `len`.
    fn plan(&mut self, len: usize, n: usize) {
        let (packed, packed_next) = (self.config.packed(len), self.config.packed(len + n));
        let group = GroupStep { slot: 0, pages: &self.pages, packed, packed_next };
        let seq = SeqStep { tokens: &vec![0; n], len, active: true, groups: vec![group] };
        self.batch.plan(&self.cpu, &StepPlan { seqs: vec![seq] }).expect("a plan");
    }

    /// Noise in -0.5..0.5, `n` rows of `heads` heads.
    fn rows(&self, n: usize, heads: usize) -> CpuBuffer<f32> {
        let noise = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 24) as f32 - 0.5;
        let values: Vec<f32> = (0..(n * heads * HEAD_DIM) as u32).map(noise).collect();
        self.cpu.upload(&values).expect("a buffer")
    }

    fn append(&mut self, rows: &CpuBuffer<f32>, n: usize) {
        let rows = Rows::new(rows, n, KV_HEADS * HEAD_DIM).expect("rows");
        let op = ops::Append::new((rows, rows), &mut self.layer, (&self.batch, 0)).expect("an op");
        self.cpu.append(op).expect("no failure");
    }

    fn attend(&self, q: &CpuBuffer<f32>, new: &CpuBuffer<f32>, out: &mut CpuBuffer<f32>) {
        let new = Rows::new(new, 1, KV_HEADS * HEAD_DIM).expect("rows");
        let q = Rows::new(q, 1, HEADS * HEAD_DIM).expect("rows");
        let out = RowsMut::new(out, 1, HEADS * HEAD_DIM).expect("rows");
        let op = ops::Attend::new(out, q, (new, new), &self.layer, (&self.batch, 0), 0.1).expect("an op");
        self.cpu.attend(op).expect("no failure");
    }
}

fn bench(c: &mut Criterion) {
    for bits in [Bits::B2, Bits::B4, Bits::B8, Bits::B16] {
        let mut world = World::new(bits);
        let (q, new) = (world.rows(1, HEADS), world.rows(1, KV_HEADS));
        let mut out = world.rows(1, HEADS);
        let mut group = c.benchmark_group("one token after 4096");
        group.sample_size(20);
        group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(1));
        world.plan(LEN, 1);
        group.throughput(Throughput::Elements(LEN as u64));
        group.bench_function(BenchmarkId::new("attend", format!("{bits} bits")), |b| {
            b.iter(|| world.attend(black_box(&q), &new, &mut out));
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("append", format!("{bits} bits")), |b| {
            b.iter(|| world.append(black_box(&new), 1));
        });
        // The step that packs a window of keys, and as many values.
        let new = world.rows(128, KV_HEADS);
        world.plan(LEN, 128);
        group.throughput(Throughput::Elements(128));
        group.bench_function(BenchmarkId::new("append 128", format!("{bits} bits")), |b| {
            b.iter(|| world.append(black_box(&new), 128));
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
