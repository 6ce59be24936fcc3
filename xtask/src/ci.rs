//! `cargo xtask ci`: what must hold before a change is merged.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

/// A command of cargo, and environment variables that it runs with.
struct Step {
    name: &'static str,
    args: &'static str,
    env: &'static [(&'static str, &'static str)],
    /// What to do if the command does not exist.
    hint: &'static str,
}

impl Step {
    const fn new(name: &'static str, args: &'static str) -> Self {
        Self { name, args, env: &[], hint: "" }
    }
}

/// All in the release profile and with all features, so that each dependency is compiled once.
const STEPS: &[Step] = &[
    Step::new("fmt", "fmt --all --check"),
    Step {
        hint: "install it with `cargo install --locked cargo-deny --version 0.20.2`",
        ..Step::new("deny", "deny --all-features --locked check --hide-inclusion-graph bans licenses sources")
    },
    Step::new("clippy", "clippy --release --locked --workspace --all-targets --all-features -- -D warnings"),
    Step {
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        ..Step::new("doc", "doc --release --locked --workspace --all-features --no-deps")
    },
    Step::new("no_std", "check --release --locked -p kivi-quant --no-default-features"),
    Step::new(
        "no_hub",
        "clippy --release --locked -p kivi-cli --all-targets --no-default-features -- -D warnings",
    ),
    Step::new("test", "test --release --locked --workspace --all-features"),
    Step::new("compile-kernels", "xtask test-kernels --compile-only"),
    Step::new("emulate-kernels", "xtask test-kernels --emulate --random 1"),
    Step::new(
        "emulate-model",
        "xtask test-model --emulate --positions 12 --ctx-size 16 --batch-size 1 --kv-bits 2 --replay 6",
    ),
];

/// Runs every step, also after one that failed.
pub fn run() -> Result<()> {
    let mut failed = Vec::new();
    for step in STEPS {
        println!("==> {}: cargo {}", step.name, step.args);
        let start = Instant::now();
        let done = step.run();
        let verdict = if done { "ok" } else { "FAILED" };
        println!("==> {}: {verdict} in {:.0} s\n", step.name, start.elapsed().as_secs_f64());
        if !done {
            failed.push(step.name);
        }
    }
    println!("{} steps passed, {} failed", STEPS.len() - failed.len(), failed.len());
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

impl Step {
    fn run(&self) -> bool {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(crate::root()).args(self.args.split(' ')).envs(self.env.iter().copied());
        match command.status() {
            // What cargo exits with if it has no such subcommand.
            Ok(status) if status.code() == Some(101) && !self.hint.is_empty() => {
                println!("{}", self.hint);
                false
            }
            Ok(status) => {
                if !status.success() {
                    println!("cargo {}: {status}", self.name); // a signal leaves no other trace
                }
                status.success()
            }
            Err(error) => {
                println!("cargo: {error}");
                false
            }
        }
    }
}
