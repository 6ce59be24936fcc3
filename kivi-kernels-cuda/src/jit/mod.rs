//! Compiling kernels by NVRTC at first use, and keeping what was compiled.
//!
//! Sources are part of the crate. What is compiled lies in the cache directory (`KIVI_CACHE_DIR`, else `kivi` in the user's
//! cache directory) under a name that has a hash of everything that it depends on: all sources and headers, CUDA's headers,
//! options, architecture and version of NVRTC. So no entry is ever wrong, and old ones can be deleted at any time.

mod disk;
mod nvrtc;
mod toolkit;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use half::{bf16, f16};

use crate::launch::BLOCK;
use crate::{Act, CudaError, ops};
use nvrtc::{Input, Nvrtc};
pub use toolkit::Toolkit;

/// A `.cu` file.
pub(crate) struct Source {
    /// Its name.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
    /// The structs that its kernels take, and their sizes here.
    pub sizes: &'static [(&'static str, usize)],
}

/// What sources include.
const HEADERS: &[(&str, &str)] =
    &[("kivi.cuh", include_str!("../../cu/kivi.cuh")), ("page.cuh", include_str!("../../cu/page.cuh"))];

/// A compiler for one architecture and type of activations.
struct Compiler {
    nvrtc: Arc<Nvrtc>,
    arch: String,
    options: Vec<String>,
}

impl Compiler {
    fn new(arch: &str, defines: &[&str]) -> Result<Self, CudaError> {
        let nvrtc = Nvrtc::loaded()?;
        let include = nvrtc.toolkit().include.iter().map(|dir| format!("-I{}", dir.display()));
        let fixed =
            [format!("--gpu-architecture={arch}"), "--std=c++17".into(), format!("-DKIVI_BLOCK={BLOCK}")];
        let defines = defines.iter().map(|&define| define.to_owned());
        let options = fixed.into_iter().chain(include).chain(defines).collect();
        Ok(Self { nvrtc, arch: arch.to_owned(), options })
    }

    /// The options for `source`: the common ones, and the sizes of its structs.
    fn options(&self, source: &Source) -> Vec<String> {
        let sizes = source.sizes.iter().map(|(name, size)| format!("-DSIZEOF_{name}={size}"));
        self.options.iter().cloned().chain(sizes).collect()
    }

    fn compile(&self, source: &Source) -> Result<Vec<u8>, CudaError> {
        let input = Input { file: source.file, text: source.text, headers: HEADERS };
        self.nvrtc.compile(&input, &self.options(source)).map_err(|log| CudaError::Compile {
            file: source.file,
            arch: self.arch.clone(),
            log,
        })
    }

    /// The name under which compiled `source` is kept.
    fn entry(&self, source: &Source) -> String {
        let mut hash = disk::Hash::default();
        for (name, text) in HEADERS {
            hash.add(name).add(text);
        }
        hash.add(source.file).add(source.text).add(self.nvrtc.version()).add(self.nvrtc.headers_hash());
        // Where CUDA's headers lie does not matter, what is in them does.
        for option in self.options(source).iter().filter(|option| !option.starts_with("-I")) {
            hash.add(option);
        }
        let stem = source.file.trim_end_matches(".cu");
        format!("{stem}-{}-{:032x}.cubin", self.arch, hash.finish())
    }
}

/// The kernels of a device, compiled as they are asked for.
pub(crate) struct Jit {
    compiler: Compiler,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
}

/// Locks; what a thread that panicked left behind is whole, as every insertion is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jit {
    /// Finds and loads NVRTC; compiles nothing yet.
    pub fn new(arch: &str, defines: &[&str]) -> Result<Self, CudaError> {
        let compiler = Compiler::new(arch, defines)?;
        Ok(Self { compiler, modules: Mutex::default(), functions: Mutex::default() })
    }

    /// `kernel` of `source`. Names of kernels are unique across sources.
    pub fn function(
        &self,
        context: &Arc<CudaContext>,
        source: &'static Source,
        kernel: &'static str,
    ) -> Result<CudaFunction, CudaError> {
        if let Some(function) = lock(&self.functions).get(kernel) {
            return Ok(function.clone());
        }
        let module = self.module(context, source)?;
        let function = module.load_function(kernel).map_err(CudaError::driver(kernel))?;
        lock(&self.functions).insert(kernel, function.clone());
        Ok(function)
    }

    fn module(
        &self,
        context: &Arc<CudaContext>,
        source: &'static Source,
    ) -> Result<Arc<CudaModule>, CudaError> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(source.file) {
            return Ok(Arc::clone(module));
        }
        let module = self.load(context, source)?;
        modules.insert(source.file, Arc::clone(&module));
        Ok(module)
    }

    /// From the disk if it is there and the driver takes it, else compiled.
    fn load(&self, context: &Arc<CudaContext>, source: &Source) -> Result<Arc<CudaModule>, CudaError> {
        let entry = self.compiler.entry(source);
        if let Some(cubin) = disk::read(&entry)
            && let Ok(module) = context.load_module(Ptx::from_binary(cubin))
        {
            return Ok(module);
        }
        let start = Instant::now();
        tracing::info!("compiling CUDA kernels: {} for {}", source.file, self.compiler.arch);
        let cubin = self.compiler.compile(source)?;
        tracing::debug!("{} took {:.1} s", source.file, start.elapsed().as_secs_f64());
        disk::write(&entry, &cubin);
        context.load_module(Ptx::from_binary(cubin)).map_err(CudaError::driver("loading compiled kernels"))
    }
}

/// Architectures that every kernel compiles for.
pub const ARCHS: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"];

/// One source, compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The source.
    pub file: &'static str,
    /// Type of activations.
    pub act: &'static str,
    /// Bytes of machine code and tables.
    pub bytes: usize,
}

/// Compiles every kernel for `arch` (`sm_80`, `sm_90a`, ..), for every type of activations. Needs no GPU, and neither reads
/// nor writes the cache.
///
/// # Errors
/// [`CudaError::NoToolkit`], or [`CudaError::Compile`] for the first source that does not compile.
pub fn compile_only(arch: &str) -> Result<Vec<Compiled>, CudaError> {
    let mut compiled = compile_for::<f16>(arch)?;
    compiled.extend(compile_for::<bf16>(arch)?);
    Ok(compiled)
}

fn compile_for<A: Act>(arch: &str) -> Result<Vec<Compiled>, CudaError> {
    let compiler = Compiler::new(arch, &[A::DEFINE])?;
    let compile = |source: &&'static Source| {
        let bytes = compiler.compile(source)?.len();
        Ok(Compiled { file: source.file, act: A::DTYPE.name(), bytes })
    };
    ops::SOURCES.iter().map(compile).collect()
}
