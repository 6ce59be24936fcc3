//! `cargo xtask golden`: the files that kivi-model and kivi-cli are tested against, made by Hugging Face transformers and
//! other Python packages.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Prints which of the modules that are its arguments do not exist.
const MISSING: &str = "\
import importlib.util, sys
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])";

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of kivi-tiny [default: the one that kivi-cli embeds]
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Compare with the files that are there instead of writing them
    #[arg(long)]
    check: bool,
}

/// Runs the scripts of `xtask/golden`.
pub fn run(args: &Args) -> Result<()> {
    let scripts = crate::root().join("xtask/golden");
    let out = crate::root().join("kivi-model/tests/golden");
    let model = args.model.clone().unwrap_or_else(|| crate::root().join("kivi-cli/assets/kivi-tiny"));
    ensure!(model.join("config.json").is_file(), "{}: has no config.json", model.display());
    let python = python()?;
    check_packages(python)?;

    let of_cli = crate::root().join("kivi-cli/tests/golden");
    for (script, model, out) in [
        ("golden.py", Some(&model), &out),
        ("perplexity.py", Some(&model), &out),
        ("tokens.py", Some(&model), &out),
        ("chat.py", None, &out),
        ("longbench.py", None, &of_cli),
    ] {
        let mut command = Command::new(python);
        command.arg(scripts.join(script)).arg("--out").arg(out);
        if let Some(model) = model {
            command.arg("--model").arg(model);
        }
        if args.check {
            command.arg("--check");
        }
        ensure!(command.status()?.success(), "{script} failed");
    }

    let rope = Command::new(python).arg(scripts.join("rope.py")).stderr(Stdio::inherit()).output()?;
    ensure!(rope.status.success(), "rope.py failed");
    let file = out.join("rope.txt");
    if args.check {
        ensure!(fs::read(&file)? == rope.stdout, "{}: is not what rope.py prints", file.display());
        println!("rope.txt: as made before");
    } else {
        fs::write(&file, &rope.stdout)?;
        println!("rope.txt: {} bytes", rope.stdout.len());
    }
    Ok(())
}

/// The name of Python 3.
pub fn python() -> Result<&'static str> {
    let runs = |name: &&str| {
        let version =
            Command::new(name).args(["-c", "import sys; sys.exit(sys.version_info < (3, 10))"]).status();
        version.is_ok_and(|status| status.success())
    };
    ["python3", "python"].into_iter().find(runs).context("no python3 of 3.10 or newer is in the PATH")
}

/// Checks that there is all that the scripts import.
fn check_packages(python: &str) -> Result<()> {
    let file = "xtask/golden/requirements.txt";
    let requirements = fs::read_to_string(crate::root().join(file))?;
    let names = requirements.lines().filter_map(|line| line.split_once("==")).map(|(name, _)| name);
    let found = Command::new(python).args(["-c", MISSING]).args(names).output()?;
    ensure!(found.status.success(), "{python}: {}", String::from_utf8_lossy(&found.stderr).trim());
    match String::from_utf8_lossy(&found.stdout).trim() {
        "" => Ok(()),
        missing => bail!("{python} has no {missing}; install with `{python} -m pip install -r {file}`"),
    }
}
