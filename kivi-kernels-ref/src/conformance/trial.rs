//! Cases of all ops in one list, so that a caller can run any of them, in any order, on any thread.

use kivi_kernels::Backend;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::{
    Case, Report, Verdict, attention, cache, elementwise, for_each_op, judge, linear, norm, record, rope,
    sample, select,
};

/// One case of the suite, to be judged on any value of the backend `B`.
pub struct Trial<B> {
    judge: Box<dyn Fn(&B) -> Report + Send + Sync>,
}

impl<B: Backend> Trial<B> {
    fn new(judge: impl Fn(&B) -> Report + Send + Sync + 'static) -> Self {
        Self { judge: Box::new(judge) }
    }

    /// Runs it.
    pub fn judge(&self, backend: &B) -> Report {
        (self.judge)(backend)
    }
}

/// Every case made by hand of op `op` (of all ops if it is empty); [`super::ops`] lists them.
pub fn trials<B: Backend>(op: &str) -> Vec<Trial<B>> {
    let mut trials = Vec::new();
    macro_rules! visit {
        ($($case:ty),*) => {$(
            if op.is_empty() || op == <$case>::OP {
                let cases = <$case>::by_hand().into_iter();
                trials.extend(cases.map(|case| Trial::new(move |backend| judge(backend, &case))));
            }
        )*};
    }
    for_each_op!(visit);
    trials
}

/// `n` random cases of op `op` (of each op if it is empty), always the same ones; one that fails is shrunk.
pub fn random_trials<B: Backend>(op: &str, n: u32) -> Vec<Trial<B>> {
    let mut trials = Vec::new();
    macro_rules! visit {
        ($($case:ty),*) => {$(
            if op.is_empty() || op == <$case>::OP {
                trials.extend((0..n).map(|i| Trial::new(move |backend| random::<B, $case>(backend, i))));
            }
        )*};
    }
    for_each_op!(visit);
    trials
}

/// Random case `i` of an op: its report, or that of the smallest case found that fails.
fn random<B: Backend, C: Case>(backend: &B, i: u32) -> Report {
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&i.to_le_bytes());
    let config = Config { failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let tree = C::strategy().new_tree(&mut runner).expect("strategies do not refuse what they make");
    let mut report = judge(backend, &tree.current());
    if report.failed() {
        let check = |case: C| match judge(backend, &case).verdict {
            Verdict::Fail(why) => Err(TestCaseError::fail(why)),
            Verdict::Pass | Verdict::Skipped(_) => Ok(()),
        };
        if let Err(TestError::Fail(why, case)) = runner.run_one(tree, check) {
            report.case = format!("{case:?}");
            report.verdict = Verdict::Fail(why.to_string());
        }
        report.case = format!("random: {}", report.case);
    }
    report
}
