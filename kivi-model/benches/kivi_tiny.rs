//! kivi-tiny on the CPU: reading a prompt, and one token at a time after it.
//!
//! `cargo bench -p kivi-model`; elements are tokens.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, EngineConfig, Request};
use kivi_model::model::Model;
use kivi_model::source::Source;
use kivi_quant::{Bits, GroupSize, KiviConfig};

/// Tokens that are decoded before the prompt is read anew, so that "after 2,000" stays true.
const DECODED: usize = 256;

fn kivi_tiny(backend: &Cpu<f32>) -> Model<Cpu<f32>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../kivi-cli/assets/kivi-tiny");
    Model::load(backend, &Source::Dir(dir), &mut |_, _| {}).expect("kivi-tiny loads")
}

/// An engine that has a prompt of `n` tokens to continue.
fn engine<'a>(
    backend: &'a Cpu<f32>,
    model: &'a Model<Cpu<f32>>,
    bits: Bits,
    n: usize,
) -> Engine<'a, Cpu<f32>> {
    let cache = KiviConfig::new(bits, bits, GroupSize::G32, 128).expect("a valid cache");
    let context = n + DECODED + 2;
    let pool_tokens = cache.pages(context) * cache.page_tokens();
    let cache = cache.into();
    let sizes = EngineConfig { cache, max_context: context, max_seqs: 1, max_batched_tokens: n, pool_tokens };
    let mut engine = Engine::new(backend, model, sizes).expect("an engine");
    let vocab = model.config().vocab_size;
    let prompt = (0..n).map(|i| ((i * i * 7 + i * 31) % vocab) as u32).collect();
    let request = Request::new(prompt, DECODED + 2);
    engine.submit(request).expect("a good request");
    engine
}

fn step(engine: &mut Engine<'_, Cpu<f32>>) {
    black_box(engine.step().expect("the CPU does not fail"));
}

fn prefill(c: &mut Criterion) {
    let backend = Cpu::<f32>::new();
    let model = kivi_tiny(&backend);
    let mut group = c.benchmark_group("prefill");
    group.sample_size(10).throughput(Throughput::Elements(2000));
    group.bench_function("2000 tokens, 2 bits", |b| {
        let new = || engine(&backend, &model, Bits::B2, 2000);
        b.iter_batched_ref(new, step, criterion::BatchSize::PerIteration);
    });
}

fn decode(c: &mut Criterion) {
    let backend = Cpu::<f32>::new();
    let model = kivi_tiny(&backend);
    let mut group = c.benchmark_group("decode");
    group.sample_size(10).throughput(Throughput::Elements(1));
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for n in [2000, 7900] {
        for bits in [Bits::B2, Bits::B4, Bits::B16] {
            let id = BenchmarkId::new(format!("after {n} tokens"), format!("{bits} bits"));
            let mut decoding = Decoding::new(&backend, &model, bits, n);
            group.bench_function(id, |b| {
                b.iter_custom(|iters| (0..iters).map(|_| decoding.step()).sum());
            });
        }
    }
}

/// An engine after its prompt.
struct Decoding<'a> {
    backend: &'a Cpu<f32>,
    model: &'a Model<Cpu<f32>>,
    bits: Bits,
    n: usize,
    engine: Engine<'a, Cpu<f32>>,
    decoded: usize,
}

impl<'a> Decoding<'a> {
    fn new(backend: &'a Cpu<f32>, model: &'a Model<Cpu<f32>>, bits: Bits, n: usize) -> Self {
        let mut engine = engine(backend, model, bits, n);
        step(&mut engine);
        Self { backend, model, bits, n, engine, decoded: 0 }
    }

    /// Time of one step, without what it takes to start anew.
    fn step(&mut self) -> Duration {
        if self.decoded == DECODED {
            *self = Self::new(self.backend, self.model, self.bits, self.n);
        }
        self.decoded += 1;
        let start = Instant::now();
        step(&mut self.engine);
        start.elapsed()
    }
}

/// Uses the main thread too, as the command line does.
fn threads(_: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().expect("the first pool");
}

criterion_group!(benches, threads, prefill, decode);
criterion_main!(benches);
