//! `devices`: where kivi can compute, and why not elsewhere.

use std::fmt::Write;

use anyhow::Result;
use kivi_kernels_cuda::{CudaError, DeviceInfo, devices, jit};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::DevicesArgs;
use crate::format::size;
use crate::output;

/// A device, or why there is none.
#[derive(Serialize)]
struct Found {
    /// What `--device` takes.
    device: String,
    /// Whether it can compute.
    usable: bool,
    /// What it is, or what is wrong.
    #[serde(flatten)]
    what: Value,
    #[serde(skip)]
    text: String,
}

/// Runs the command.
pub fn run(args: &DevicesArgs) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut found = vec![Found {
        device: "cpu".into(),
        usable: true,
        what: json!({ "threads": threads }),
        text: format!("{threads} threads, f32"),
    }];
    let compiler = jit::nvrtc_version();
    match devices() {
        Ok(devices) => found.extend(devices.iter().enumerate().map(|(i, info)| cuda(i, info, &compiler))),
        Err(why) => found.push(missing("cuda", &why)),
    }
    if args.json {
        return output::write(&(serde_json::to_string_pretty(&found)? + "\n"));
    }
    let mut out = String::new();
    for Found { device, usable, text, .. } in &found {
        let not = if *usable { "" } else { "not usable: " };
        writeln!(out, "{device:<8} {not}{text}")?;
    }
    output::write(&out)
}

/// A CUDA device, and whether kernels can be compiled for it.
fn cuda(
    ordinal: usize,
    info: &Result<DeviceInfo, CudaError>,
    compiler: &Result<(String, String), CudaError>,
) -> Found {
    let device = format!("cuda:{ordinal}");
    let (info, (version, library)) = match (info, compiler) {
        (Ok(info), Ok(compiler)) => (info, compiler),
        (Err(why), _) | (_, Err(why)) => return missing(&device, why),
    };
    let (major, minor) = info.compute_capability;
    let text = format!(
        "{}, compute capability {major}.{minor}, {} of {} free, driver for CUDA {}, NVRTC {version} ({library})",
        info.name,
        size(info.free_bytes as u64),
        size(info.total_bytes as u64),
        info.driver,
    );
    let what = json!({
        "name": info.name,
        "compute_capability": format!("{major}.{minor}"),
        "free_bytes": info.free_bytes,
        "total_bytes": info.total_bytes,
        "driver_cuda": info.driver,
        "nvrtc": version,
        "nvrtc_library": library,
    });
    Found { device, usable: true, what, text }
}

fn missing(device: &str, why: &CudaError) -> Found {
    let why = why.to_string();
    Found { device: device.into(), usable: false, what: json!({ "why": why }), text: why }
}
