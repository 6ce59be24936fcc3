//! `eval`: what a cache costs on tasks.

use anyhow::Result;
use kivi_kernels::Backend;

use crate::args::EvalTask;
use crate::eval::gsm8k::Gsm8k;
use crate::eval::lines::Lines;
use crate::eval::longbench::LongBench;
use crate::eval::needle::Needle;
use crate::eval::passkey::Passkey;
use crate::eval::run::run as on;

/// Runs a task on `backend`; `quiet` leaves progress out.
pub fn run<B: Backend>(backend: &B, task: &EvalTask, quiet: bool) -> Result<()> {
    match task {
        EvalTask::Passkey(args) => on(backend, &args.run, &Passkey::new(args), quiet),
        EvalTask::Needle(args) => on(backend, &args.run, &Needle::open(args)?, quiet),
        EvalTask::Gsm8k(args) => on(backend, &args.run, &Gsm8k::open(args)?, quiet),
        EvalTask::Lines(args) => on(backend, &args.run, &Lines::new(args), quiet),
        EvalTask::LongBench(args) => on(backend, &args.run, &LongBench::open(args)?, quiet),
    }
}
