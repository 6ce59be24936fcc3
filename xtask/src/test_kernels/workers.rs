//! The suite on several threads: each has a backend of its own and takes the next case that nobody has.

use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use kivi_kernels::{Backend, Element};
use kivi_kernels_ref::conformance::{Report, Trial};

/// Most threads that are started unasked.
const MOST: usize = 16;
/// Time from one line of progress to the next.
const PROGRESS: Duration = Duration::from_secs(10);

/// As many threads as can run at a time, within reason.
pub fn default_jobs() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MOST)
}

/// What is shared by the threads.
struct Shared<'a, B, F> {
    trials: &'a [Trial<B>],
    next: AtomicUsize,
    make: F,
}

/// A case's place and its report, or why a thread could not begin.
type Message<E> = Result<(usize, Report), E>;

/// Judges `trials` on `jobs` backends that `make` makes; reports are in the order of the trials. Failures and progress are
/// on standard error as they come.
///
/// # Errors
/// The first of `make`.
pub fn run<B: Backend, E: Display + Send>(
    trials: &[Trial<B>],
    jobs: usize,
    make: impl Fn() -> Result<B, E> + Sync,
) -> Result<Vec<Report>, E> {
    let shared = Shared { trials, next: AtomicUsize::new(0), make };
    let (sender, receiver) = mpsc::channel();
    let mut reports = thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, trials.len().max(1)) {
            let (sender, shared) = (sender.clone(), &shared);
            scope.spawn(move || shared.work(&sender));
        }
        drop(sender);
        shared.collect::<E>(&receiver)
    })?;
    reports.sort_unstable_by_key(|(place, _)| *place);
    Ok(reports.into_iter().map(|(_, report)| report).collect())
}

impl<B: Backend, F: Sync> Shared<'_, B, F> {
    /// One thread: cases until there are none.
    fn work<E>(&self, sender: &Sender<Message<E>>)
    where
        F: Fn() -> Result<B, E>,
    {
        let backend = match (self.make)() {
            Ok(backend) => backend,
            Err(error) => return drop(sender.send(Err(error))),
        };
        loop {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(trial) = self.trials.get(place) else { return };
            if sender.send(Ok((place, trial.judge(&backend)))).is_err() {
                return; // another thread could not begin
            }
        }
    }

    /// Takes the reports until every thread is done.
    fn collect<E>(&self, receiver: &Receiver<Message<E>>) -> Result<Vec<(usize, Report)>, E> {
        let (mut reports, mut shown) = (Vec::new(), Instant::now());
        let total = self.trials.len();
        loop {
            match receiver.recv_timeout(PROGRESS.saturating_sub(shown.elapsed())) {
                Ok(message) => {
                    let message = message?;
                    if message.1.failed() {
                        eprintln!("{}", message.1);
                    }
                    reports.push(message);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(reports),
            }
            if shown.elapsed() >= PROGRESS {
                eprintln!("{}: {} of {total} cases", B::Act::DTYPE.name(), reports.len());
                shown = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use kivi_kernels_ref::{Cpu, conformance};

    use super::*;

    #[test]
    fn reports_are_in_order_on_any_number_of_threads() {
        let trials = conformance::trials::<Cpu<f32>>("gather");
        let cases = |jobs| {
            let reports = run(&trials, jobs, || Ok::<_, Infallible>(Cpu::<f32>::new())).unwrap();
            reports.into_iter().map(|report| report.case).collect::<Vec<_>>()
        };
        assert!(!trials.is_empty());
        assert_eq!(cases(1), cases(7));
        assert_eq!(cases(1).len(), trials.len());
    }

    #[test]
    fn a_backend_that_cannot_be_made_ends_the_run() {
        let trials = conformance::trials::<Cpu<f32>>("gather");
        assert_eq!(run(&trials, 3, || Err("no device")).unwrap_err(), "no device");
    }
}
