//! Drawing tokens: every backend draws the oracle's.

use kivi_kernels::ops::Draw;
use kivi_kernels::{Backend, DType, StepError, ops};
use proptest::prelude::any;
use proptest::strategy::{BoxedStrategy, Strategy};

use super::select::{Logits, POISON, read_indices};
use super::{Case, Outcome, Rng};

/// Rows, each drawn in its own way.
#[derive(Clone, Debug)]
pub struct SampleCase {
    logits: Logits,
    /// How rows are drawn, in turn; random bits instead of those that are given.
    draws: Vec<Draw>,
}

/// Every filter alone, at its ends, all together, and rows that are not drawn.
fn all_ways() -> Vec<Draw> {
    let plain = Draw { temperature: 1.0, ..Draw::GREEDY };
    let together = Draw { temperature: 0.7, top_k: 50, top_p: 0.9, min_log_p: 0.05_f32.ln(), bits: 0 };
    vec![
        plain,
        Draw { temperature: 0.2, ..plain },
        Draw { temperature: 1e-30, ..plain },
        Draw { temperature: 1e30, ..plain },
        Draw { top_k: 1, ..plain },
        Draw { top_k: 5, ..plain },
        Draw::GREEDY,
        Draw { top_k: 10_000_000, ..plain },
        Draw { top_p: 0.0, ..plain },
        Draw { top_p: 0.3, ..plain },
        Draw { temperature: 0.3, top_p: 0.95, ..plain },
        Draw { min_log_p: 0.0, ..plain },
        Draw { temperature: 0.5, min_log_p: 0.02_f32.ln(), ..plain },
        together,
        Draw { top_k: 1000, top_p: 0.5, temperature: 1.5, ..together },
        Draw { top_k: 3, ..together },
    ]
}

impl SampleCase {
    /// The draws of the case's rows: none, all and random bits.
    fn words(&self) -> Vec<u32> {
        let mut rng = Rng::new(self.logits.seed + 9);
        let ways = self.draws.iter().cycle().take(self.logits.rows);
        let bits = [0, u64::MAX].into_iter().chain(std::iter::repeat_with(move || rng.bits()));
        ways.zip(bits).flat_map(|(&draw, bits)| Draw { bits, ..draw }.to_words()).collect()
    }
}

impl Case for SampleCase {
    const OP: &'static str = "sample";

    fn by_hand() -> Vec<Self> {
        let draws = all_ways();
        let logits =
            |rows, vocab, step| Logits { rows, vocab, pad: 0, step, odd: None, seed: rows as u64 + 3 };
        let odd = |odd| Logits { odd: Some(odd), ..logits(35, 300, 1e-3) };
        let rows = [
            logits(0, 10, 1e-3),
            logits(16, 1, 1e-3),
            logits(96, 7, 1e-3),
            logits(96, 7, 1.0),
            logits(160, 4096, 1e-3),
            logits(33, 32_000, 1e-3),
            logits(17, 128_256, 1e-3),
            logits(16, 128_256, 0.5),
            // Equal logits alone.
            logits(33, 1000, 100.0),
            Logits { pad: 8, ..logits(64, 333, 0.25) },
            Logits { pad: 1, ..logits(48, 1023, 1e-3) },
        ];
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(odd);
        rows.into_iter().chain(odd).map(|logits| Self { logits, draws: draws.clone() }).collect()
    }

    fn strategy() -> BoxedStrategy<Self> {
        let draw = (0..6_usize, 0..600_u32, 0..6_usize, any::<u16>(), any::<u64>());
        let draw = draw.prop_map(|(temperature, top_k, kind, p, bits)| {
            let p = f32::from(p) / 65536.0;
            Draw {
                temperature: [0.0, 0.1, 0.3, 0.7, 1.0, 2.5][temperature],
                top_k: if kind < 2 { top_k } else { 0 },
                top_p: if kind > 2 { p } else { 1.0 },
                min_log_p: if kind % 2 == 1 { (p * p).ln() } else { f32::NEG_INFINITY },
                bits,
            }
        });
        let draws = proptest::collection::vec(draw, 1..8);
        (Logits::strategy(), draws).prop_map(|(logits, draws)| Self { logits, draws }).boxed()
    }

    fn run<B: Backend>(&self, backend: &B, act: DType) -> Result<Outcome, StepError<B::Error>> {
        let logits = self.logits.upload(backend, act)?;
        let draws = backend.upload(&self.words())?;
        let mut out = backend.upload(&vec![POISON; self.logits.rows + 3])?;
        backend.sample(ops::Sample::new(&mut out, self.logits.grid().view(&logits)?, &draws)?)?;
        Ok(read_indices(backend, &out, self.logits.rows)?)
    }
}
