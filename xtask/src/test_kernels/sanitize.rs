//! `cargo xtask test-kernels --sanitize TOOL`: the same run under compute-sanitizer.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

/// What the sanitizer looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// Accesses outside of buffers, and misaligned ones.
    Memcheck,
    /// Races in shared memory.
    Racecheck,
    /// Reads of device memory that was never written.
    Initcheck,
    /// Wrong use of barriers.
    Synccheck,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memcheck => "memcheck",
            Self::Racecheck => "racecheck",
            Self::Initcheck => "initcheck",
            Self::Synccheck => "synccheck",
        })
    }
}

/// What the sanitizer exits with if it found something; the program itself exits with 1 if a case fails.
const FOUND: i32 = 9;

/// Runs this command again under the sanitizer.
pub fn run(tool: Tool) -> Result<()> {
    let sanitizer = find().context(
        "compute-sanitizer is not in CUDA_HOME, the PATH or /usr/local/cuda; it is part of the CUDA toolkit \
         (NVIDIA's package cuda-sanitizer-13-0)",
    )?;
    // Asking whether host memory is pinned is an API error where it is not, and no mistake.
    let mut command = Command::new(&sanitizer);
    command.args(["--tool", &tool.to_string(), "--report-api-errors", "no"]);
    command.args(["--error-exitcode", &FOUND.to_string()]);
    command.arg(env::current_exe()?).args(without_sanitize(env::args_os().skip(1)));
    command.args(["--jobs", "1"]);
    let status = command.status().with_context(|| sanitizer.display().to_string())?;
    match status.code() {
        Some(0) => Ok(()),
        Some(FOUND) => bail!("{tool} found errors"),
        _ => bail!("under {tool}: {status}"),
    }
}

/// The command line without `--sanitize` and its value.
fn without_sanitize(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut kept = Vec::new();
    while let Some(arg) = args.next() {
        if arg == "--sanitize" {
            args.next();
        } else if !arg.to_string_lossy().starts_with("--sanitize=") {
            kept.push(arg);
        }
    }
    kept
}

fn find() -> Option<PathBuf> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = env::split_paths(&path).collect();
    let in_toolkit = |root: &Path| [root.join("bin"), root.join("compute-sanitizer")];
    let directories = toolkits
        .flat_map(|root| in_toolkit(&root))
        .chain(in_path)
        .chain(in_toolkit(Path::new("/usr/local/cuda")));
    let name = format!("compute-sanitizer{}", env::consts::EXE_SUFFIX);
    directories.map(|directory| directory.join(&name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_flags_are_passed_on() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let expected = args("test-kernels --device cuda:1 --json");
        for line in [
            "test-kernels --device cuda:1 --sanitize memcheck --json",
            "test-kernels --sanitize=memcheck --device cuda:1 --json",
        ] {
            assert_eq!(without_sanitize(args(line)), expected);
        }
    }
}
