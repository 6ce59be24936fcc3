//! `cargo xtask test-kernels --emulate`: the same run on a CUDA driver that runs kernels on the CPU
//! (`kivi-kernels-cuda/emulator`).

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The driver and what stands in for the toolkit, where they go.
macro_rules! files {
    ($($file:literal => $to:literal,)*) => {
        [$(($to, include_str!(concat!("../../../kivi-kernels-cuda/emulator/", $file)))),*]
    };
}
const FILES: [(&str, &str); 4] = files! {
    "driver.cpp" => "driver.cpp",
    "nvrtc.cpp" => "nvrtc.cpp",
    "cuda_fp16.h" => "include/cuda_fp16.h",
    "emulator_ptx.h" => "include/emulator_ptx.h",
};

/// Runs this command again, on the emulator, with these arguments in place of `--emulate`.
pub fn again(more: &[&str]) -> Result<()> {
    let status = command(more)?.status()?;
    ensure!(status.success(), "on the emulator: {status}");
    Ok(())
}

/// What does that.
pub fn command(more: &[&str]) -> Result<Command> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "--emulate: runs on x86-64 Linux only");
    let home = crate::root().join("target").join("emulator");
    build(&home).context("building the emulator")?;
    let args = env::args_os().skip(1).filter(|arg| arg != "--emulate");
    let mut command = Command::new(env::current_exe()?);
    command
        .args(args.chain(more.iter().map(OsString::from)))
        .env("LD_LIBRARY_PATH", home.join("lib64"))
        .env("CUDA_HOME", &home)
        .env("KIVI_CACHE_DIR", home.join("cache"))
        // So that cases are on both sides of the boundary.
        .env("KIVI_FEW_UNITS", env::var("KIVI_FEW_UNITS").unwrap_or_else(|_| "4".into()));
    Ok(command)
}

/// Puts the emulator into `home`, unless it is there. What was compiled by another one goes.
fn build(home: &Path) -> Result<()> {
    let same =
        |(file, text): &(&str, &str)| fs::read_to_string(home.join(file)).is_ok_and(|old| old == *text);
    if FILES.iter().all(same) && home.join("lib64/libnvrtc.so.13").is_file() {
        return Ok(());
    }
    if home.exists() {
        fs::remove_dir_all(home)?;
    }
    for dir in ["include", "lib64"] {
        fs::create_dir_all(home.join(dir))?;
    }
    for (file, text) in FILES {
        fs::write(home.join(file), text)?;
    }
    fs::write(home.join("include/cuda_bf16.h"), "#include <cuda_fp16.h>\n")?;
    compile(home, "driver.cpp", "libcuda.so.1")?;
    compile(home, "nvrtc.cpp", "libnvrtc.so.13")
}

fn compile(home: &Path, source: &str, library: &str) -> Result<()> {
    let compiler = env::var("EMULATOR_CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command.args(["-O2", "-w", "-std=c++17", "-fPIC", "-shared", "-o"]).arg(home.join("lib64").join(library));
    command.arg(home.join(source)).arg(format!("-Wl,-soname,{library}"));
    let status =
        command.status().with_context(|| format!("{compiler}: no C++ compiler; EMULATOR_CXX names one"))?;
    ensure!(status.success(), "{compiler} {source}: {status}");
    Ok(())
}
