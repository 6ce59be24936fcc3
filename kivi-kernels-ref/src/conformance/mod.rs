//! One suite for every backend: cases are data, the oracle says what is right, the yardstick how near is near.
//!
//! A backend's test file is one line, `kivi_kernels_ref::conformance_tests!(Cpu::<f32>::new());`, or, for a device
//! that may be absent, `conformance_tests!(try Device::new(0));`. [`run`] gives the same cases as a table.

mod attention;
mod cache;
mod cases;
mod elementwise;
mod host;
mod linear;
mod norm;
mod record;
mod rope;
mod sample;
mod select;
mod state;
mod tolerance;
mod trial;

use std::fmt::Display;
use std::io::Write;

use kivi_kernels::{Backend, DType, Element};

pub use attention::AttendCase;
pub use cache::AppendCase;
pub use cases::{CacheCase, CacheShape, Case, Data, Outcome, Policy, SeqCase};
pub use host::{Grid, Rng};
pub use tolerance::{Report, Verdict, judge};
pub use trial::{Trial, random_trials, trials};

/// Calls `$visit!(Case, ..)` with the cases of every op: the only list of them.
macro_rules! for_each_op {
    ($visit:ident) => {
        $visit! {
            linear::EmbedCase, linear::LinearCase, norm::RmsNormCase, norm::AddRmsNormCase, norm::LayerNormCase, rope::RopeCase,
            elementwise::ActivateCase, elementwise::AddCase, attention::AttendCase, cache::AppendCase,
            cache::ClearPagesCase, select::GatherCase, select::ArgmaxCase, select::TopKCase,
            sample::SampleCase, record::RecordCase
        }
    };
}
use for_each_op;

/// The names of all ops, those of the methods of [`Backend`].
pub fn ops() -> Vec<&'static str> {
    macro_rules! visit {
        ($($case:ty),*) => { vec![$(<$case>::OP),*] };
    }
    for_each_op!(visit)
}

/// Runs every case made by hand of op `op` (of all ops if it is empty) on `backend`; [`ops`] lists them.
pub fn run<B: Backend>(backend: &B, op: &str) -> Vec<Report> {
    trials(op).iter().map(|trial| trial.judge(backend)).collect()
}

/// Runs `n` random cases of op `op` on `backend`, always the same ones; a failing one is shrunk.
///
/// # Errors
/// The first that fails, made small, and why.
pub fn run_random<B: Backend>(backend: &B, op: &str, n: u32) -> Result<(), String> {
    let reports = random_trials(op, n).into_iter().map(|trial| trial.judge(backend));
    reports.filter(Report::failed).map(|report| report.to_string()).next().map_or(Ok(()), Err)
}

/// The body of each test of [`crate::conformance_tests`].
///
/// # Panics
/// If a case fails.
pub fn check<B: Backend, E: Display>(op: &str, backend: Result<B, E>) {
    let backend = match backend {
        Ok(backend) => backend,
        Err(why) => return skip(&format!("{op}: {why}")),
    };
    let reports = run(&backend, op);
    assert!(!reports.is_empty(), "no cases for op {op}");
    let failed: Vec<String> = reports.iter().filter(|r| r.failed()).map(Report::to_string).collect();
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), reports.len(), failed.join("\n"));
    reports.iter().filter(|r| matches!(r.verdict, Verdict::Skipped(_))).for_each(|r| println!("{r}"));
    run_random(&backend, op, 32).unwrap_or_else(|why| panic!("{op}: {why}"));
}

/// Says that a test did not run, where it is seen: the test harness shows what a passed test prints to nobody, but
/// does not catch what is written to standard error itself.
pub fn skip(why: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// The yardstick's rounding for activations of type `act`.
fn rounding(act: DType) -> Option<DType> {
    matches!(act, DType::F16 | DType::Bf16).then_some(act)
}

/// `x` rounded to `dtype`.
fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::F64 => x,
        DType::F32 => f32::from_f64(x).to_f64(),
        DType::F16 => half::f16::from_f64(x).to_f64(),
        DType::Bf16 => half::bf16::from_f64(x).to_f64(),
        DType::U32 => u32::from_f64(x).to_f64(),
    }
}

/// Makes a test of each op for a backend: `conformance_tests!(backend)`, or `conformance_tests!(try backend)` for a
/// `Result`, whose error means that the tests are skipped, and say so.
#[macro_export]
macro_rules! conformance_tests {
    (try $backend:expr) => {
        $crate::conformance_tests! { @ $backend;
            embed linear rms_norm add_rms_norm layer_norm rope activate add attend append clear_pages gather argmax top_k sample record }
    };
    (@ $backend:expr; $($op:ident)*) => {$(
        #[test]
        fn $op() {
            $crate::conformance::check(stringify!($op), $backend);
        }
    )*};
    ($backend:expr) => {
        $crate::conformance_tests!(try Ok::<_, core::convert::Infallible>($backend));
    };
}
