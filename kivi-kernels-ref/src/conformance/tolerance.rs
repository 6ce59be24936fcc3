//! How near is near: a backend may err twice as much as the yardstick, and by one unit in the last place.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kivi_kernels::{Backend, DType, Element, ErrorKind, KernelError, StepError};

use super::{CacheShape, Case, Outcome, rounding};
use crate::Cpu;

/// How a case went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within tolerance.
    Pass,
    /// Not; and why.
    Fail(String),
    /// Not run; and why.
    Skipped(String),
}

/// One case on one backend.
#[derive(Clone, Debug)]
pub struct Report {
    /// The op: the name of its method in [`Backend`].
    pub op: &'static str,
    /// Type of activations.
    pub dtype: DType,
    /// The case, as Debug prints it.
    pub case: String,
    /// What cache it was, for ops that have one.
    pub cache: Option<CacheShape>,
    /// Largest difference from the oracle.
    pub max_err: f64,
    /// The same of the yardstick.
    pub yardstick_err: f64,
    /// The verdict.
    pub verdict: Verdict,
}

impl Report {
    /// Whether the case failed.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Fail(_))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, why) = match &self.verdict {
            Verdict::Pass => ("pass", ""),
            Verdict::Fail(why) => ("FAIL", why.as_str()),
            Verdict::Skipped(why) => ("skipped", why.as_str()),
        };
        write!(f, "{kind}: {} {} {}: {why}", self.op, self.dtype.name(), self.case)
    }
}

/// Runs `case` on `backend`, the oracle and the yardstick, on the same inputs, and compares.
///
/// # Equation
/// `abs(x - oracle) <= 2 max(abs(yardstick - oracle)) + ulp(oracle)` for each element `x`, where the maximum is
/// over the whole case and `ulp` is that of the backend's activations; every word equal; nothing else written.
pub fn judge<B: Backend, C: Case>(backend: &B, case: &C) -> Report {
    let act = B::Act::DTYPE;
    let mut report = Report {
        op: C::OP,
        dtype: act,
        case: format!("{case:?}"),
        cache: case.cache(),
        max_err: f64::NAN,
        yardstick_err: f64::NAN,
        verdict: Verdict::Pass,
    };
    if case.spec(act).is_some_and(|spec| !backend.supports(&spec)) {
        report.verdict = Verdict::Skipped("not supported".into());
        return report;
    }
    // A panic is a failure of this case: the report names it.
    let Ok(got) = catch_unwind(AssertUnwindSafe(|| case.run(backend, act))) else {
        report.verdict = Verdict::Fail("panicked".into());
        return report;
    };
    let yardstick = Cpu::yardstick(rounding(act));
    let runs = (got, case.run(&Cpu::<f64>::new(), act), case.run(&yardstick, act));
    let (got, oracle, yardstick) = match runs {
        (Ok(got), Ok(oracle), Ok(yardstick)) => (got, oracle, yardstick),
        (Err(error), _, _) => {
            report.verdict = not_run(&error);
            return report;
        }
        (_, Err(error), _) | (_, _, Err(error)) => {
            report.verdict = Verdict::Fail(format!("the case itself: {error}"));
            return report;
        }
    };
    report.max_err = max_err(&got.values, &oracle.values);
    report.yardstick_err = max_err(&yardstick.values, &oracle.values);
    if let Some(why) = fault(&got, &oracle, report.yardstick_err, act) {
        report.verdict = Verdict::Fail(why);
    }
    report
}

fn not_run<E: KernelError>(error: &StepError<E>) -> Verdict {
    match error {
        StepError::Device(e) if e.kind() == ErrorKind::Unsupported => Verdict::Skipped(e.to_string()),
        error => Verdict::Fail(error.to_string()),
    }
}

/// What is wrong with `got`, if anything is.
fn fault(got: &Outcome, oracle: &Outcome, yardstick_err: f64, act: DType) -> Option<String> {
    if let Some(fault) = got.faults.first() {
        return Some(format!("{fault} ({} such)", got.faults.len()));
    }
    if (got.values.len(), got.words.len()) != (oracle.values.len(), oracle.words.len()) {
        return Some("outputs of another size".into());
    }
    if let Some(i) = (0..got.words.len()).find(|&i| got.words[i] != oracle.words[i]) {
        return Some(format!("word {i} is {:#010x}, expected {:#010x}", got.words[i], oracle.words[i]));
    }
    for (i, (&x, &expected)) in got.values.iter().zip(&oracle.values).enumerate() {
        let limit = 2.0 * yardstick_err + ulp(act, expected);
        let near = (x - expected).abs() <= limit; // a NaN is not near
        if !near {
            return Some(format!("element {i} is {x:e}, expected {expected:e} within {limit:e}"));
        }
    }
    None
}

fn max_err(values: &[f64], oracle: &[f64]) -> f64 {
    let worst = |worst: f64, err: f64| if err > worst || err.is_nan() { err } else { worst };
    values.iter().zip(oracle).map(|(x, o)| (x - o).abs()).fold(0.0, worst)
}

/// The unit in the last place of `x` in `dtype`.
fn ulp(dtype: DType, x: f64) -> f64 {
    let (digits, min_exponent) = match dtype {
        DType::F64 => (52, -1022),
        DType::F32 => (23, -126),
        DType::F16 => (10, -14),
        DType::Bf16 => (7, -126),
        DType::U32 => return 0.0,
    };
    let exponent = if x == 0.0 { min_exponent } else { x.abs().log2().floor() as i32 };
    2.0_f64.powi(exponent.max(min_exponent) - digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulp_is_the_distance_to_the_next_number() {
        assert_eq!(ulp(DType::F32, 1.5), f64::from(f32::EPSILON));
        assert_eq!(ulp(DType::F16, -1000.0), 0.5);
        assert_eq!(ulp(DType::F16, 0.0), half::f16::from_bits(1).to_f64());
        assert_eq!(ulp(DType::Bf16, 256.0), 2.0);
    }

    #[test]
    fn a_fault_is_found() {
        let oracle = Outcome { values: vec![1.0, 2.0], words: vec![7], faults: vec![] };
        let wrong = |f: &dyn Fn(&mut Outcome)| {
            let mut got = oracle.clone();
            f(&mut got);
            fault(&got, &oracle, 1e-3, DType::F32)
        };
        assert_eq!(wrong(&|_| {}), None);
        assert_eq!(wrong(&|x| x.values[0] += 1.9e-3), None);
        assert!(wrong(&|x| x.values[0] += 2.1e-3).is_some());
        assert!(wrong(&|x| x.values[1] = f64::NAN).is_some());
        assert!(wrong(&|x| x.words[0] = 8).is_some());
        assert!(wrong(&|x| x.faults.push("touched".into())).is_some());
        assert!(wrong(&|x| x.values.truncate(1)).is_some());
    }
}
