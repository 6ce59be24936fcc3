//! Where NVRTC and the CUDA headers are on this machine.

use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::CudaError;

/// NVRTC and the headers that belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolkit {
    /// The library.
    pub library: PathBuf,
    /// Directories with the headers.
    pub include: Vec<PathBuf>,
}

impl Toolkit {
    /// The first that is complete, of: a toolkit in `CUDA_HOME` or `CUDA_PATH`; Python wheels (`nvidia-cuda-nvrtc`,
    /// `nvidia-cuda-runtime`, `nvidia-cuda-cccl`) of the active environment; a toolkit in its usual places; wheels of the
    /// user or the system.
    ///
    /// # Errors
    /// [`CudaError::NoToolkit`], which says what to install.
    pub fn find() -> Result<Self, CudaError> {
        let roots = roots();
        let searched = || roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(", ");
        roots
            .iter()
            .find_map(|root| Self::at(root))
            .ok_or_else(|| CudaError::NoToolkit { searched: searched() })
    }

    /// The built-ins of NVRTC that lie beside it.
    pub(super) fn builtins(&self) -> Vec<PathBuf> {
        let stem = if cfg!(windows) { "nvrtc-builtins64_" } else { "libnvrtc-builtins.so." };
        self.library.parent().map(|dir| files(dir, stem)).unwrap_or_default()
    }

    /// Where cuBLASLt may be: beside NVRTC, or in a wheel beside NVRTC's.
    pub(crate) fn cublas_lt(&self) -> Vec<PathBuf> {
        let stem = if cfg!(windows) { "cublasLt64_" } else { "libcublasLt.so" };
        let beside = self.library.parent().map(Path::to_owned);
        let wheel = self.library.ancestors().nth(3).map(|nvidia| nvidia.join("cublas").join("lib"));
        [beside, wheel].into_iter().flatten().filter_map(|dir| files(&dir, stem).into_iter().max()).collect()
    }

    /// What `root`, a toolkit or a directory of wheels, has.
    fn at(root: &Path) -> Option<Self> {
        let wheels = root.join("nvidia");
        if wheels.is_dir() {
            // CUDA 13: one directory for all; CUDA 12: one a wheel.
            return Self::in_dirs(&[wheels.join("cu13")]).or_else(|| {
                let parts = ["cuda_nvrtc", "cuda_runtime", "cuda_cccl"];
                Self::in_dirs(&parts.map(|part| wheels.join(part)))
            });
        }
        Self::in_dirs(&[root.to_owned()])
    }

    /// The library from one and headers from any of `dirs`.
    fn in_dirs(dirs: &[PathBuf]) -> Option<Self> {
        let lib = ["lib64", "lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "bin", "bin/x64"];
        let library =
            dirs.iter().flat_map(|dir| lib.map(|lib| dir.join(lib))).find_map(|dir| library(&dir))?;
        // Since CUDA 13, what the headers include themselves lies in `cccl`.
        let include = dirs.iter().flat_map(|dir| [dir.join("include"), dir.join("include").join("cccl")]);
        let include: Vec<PathBuf> = include.filter(|dir| dir.is_dir()).collect();
        let complete = include.iter().any(|dir| dir.join("cuda_fp16.h").is_file());
        complete.then_some(Self { library, include })
    }
}

/// NVRTC in `dir`; of several versions the last by name.
fn library(dir: &Path) -> Option<PathBuf> {
    files(dir, if cfg!(windows) { "nvrtc64_" } else { "libnvrtc.so" }).into_iter().max()
}

/// The files in `dir` whose names start with `stem`, but for NVRTC's alternative builds.
fn files(dir: &Path, stem: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with(stem) && !name.contains(".alt."))
        .map(|name| dir.join(name))
        .collect()
}

/// Where to look, in order.
fn roots() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut roots: Vec<PathBuf> =
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| variable(name)).collect();
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        variable(name).iter().for_each(|prefix| roots.extend(packages(prefix)));
    }
    roots.extend(["/usr/local/cuda", "/opt/cuda", "/usr"].map(PathBuf::from));
    variable("HOME").iter().for_each(|home| roots.extend(packages(&home.join(".local"))));
    ["/usr/local", "/usr"].iter().for_each(|prefix| roots.extend(packages(Path::new(prefix))));
    roots
}

/// The directories below `prefix` where Python packages are installed and some of them are NVIDIA's.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let lib = prefix.join("lib");
    let pythons = fs::read_dir(&lib).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let is_python =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"));
    let unix =
        pythons.filter(is_python).flat_map(|dir| [dir.join("site-packages"), dir.join("dist-packages")]);
    let windows = [prefix.join("Lib").join("site-packages")];
    unix.chain(windows).filter(|dir| dir.join("nvidia").is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with empty files in it.
    fn tree(name: &str, files: &[&str]) -> PathBuf {
        let root = env::temp_dir().join(format!("kivi-toolkit-{}-{name}", std::process::id()));
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    #[cfg(unix)]
    #[test]
    fn toolkits_and_wheels_are_found_where_they_are_whole() {
        let toolkit = tree(
            "whole",
            &["lib64/libnvrtc.so.13", "lib64/libnvrtc.alt.so.13", "include/cuda_fp16.h", "include/cccl/x"],
        );
        let found = Toolkit::at(&toolkit).unwrap();
        assert_eq!(found.library, toolkit.join("lib64/libnvrtc.so.13"));
        assert_eq!(found.include, [toolkit.join("include"), toolkit.join("include/cccl")]);
        let wheels = tree(
            "wheels",
            &["nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cuda_runtime/include/cuda_fp16.h"],
        );
        assert_eq!(Toolkit::at(&wheels).unwrap().include, [wheels.join("nvidia/cuda_runtime/include")]);
        let no_headers = tree("half", &["lib64/libnvrtc.so.13", "include/cuda.h"]);
        assert_eq!(Toolkit::at(&no_headers), None);
        [toolkit, wheels, no_headers].iter().for_each(|root| fs::remove_dir_all(root).unwrap());
    }
}
