//! Compiling kernels by NVRTC at first use, and keeping what was compiled.
//!
//! Sources are part of the crate. What is compiled lies in the cache directory (`KIVI_CACHE_DIR`, else `kivi` in the user's
//! cache directory) under a name that has a hash of everything that it depends on: all sources and headers, CUDA's headers,
//! options, architecture and version of NVRTC. So no entry is ever wrong, and old ones can be deleted at any time.

mod disk;
mod nvrtc;
mod shape;
mod toolkit;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use half::{bf16, f16};

use crate::launch::BLOCK;
use crate::{Act, CudaError, ops, probe};
use nvrtc::{Input, Nvrtc};
pub(crate) use shape::{Limits, Plan, Shape};
pub use toolkit::Toolkit;

/// A `.cu` file.
pub(crate) struct Source {
    /// Its name.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
    /// The structs that its kernels take, and their sizes here.
    pub sizes: &'static [(&'static str, usize)],
    /// Whether it is compiled for one [`Shape`] at a time.
    pub shaped: bool,
    /// Whether its kernels have so much on their way from memory that they are to have all the first-level cache there can be:
    /// else they find what the launch before left, whose shared memory takes of it.
    pub streaming: bool,
}

/// A kernel, or one for each [`Shape`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    /// Its name, which no other source has.
    pub kernel: &'static str,
    /// What it is compiled for.
    pub shape: Option<Shape>,
    /// Bytes of dynamic shared memory that it is launched with.
    pub shared: usize,
}

/// Names and texts of headers.
macro_rules! headers {
    ($($file:literal),*) => { [$(($file, include_str!(concat!("../../cu/", $file)))),*] };
}

/// What sources include.
const HEADERS: &[(&str, &str)] = &headers![
    "codes.cuh",
    "copies.cuh",
    "fill.cuh",
    "kivi.cuh",
    "pack.cuh",
    "packs.cuh",
    "page.cuh",
    "plan.cuh",
    "products.cuh",
    "ptx.cuh",
    "row.cuh",
    "share.cuh",
    "softmax.cuh",
    "span.cuh",
    "sums.cuh",
    "tiles.cuh"
];

/// A compiler for one architecture and type of activations.
struct Compiler {
    nvrtc: Arc<Nvrtc>,
    arch: String,
    options: Vec<String>,
    limits: Limits,
}

impl Compiler {
    fn new(arch: &str, limits: Limits, defines: &[&str]) -> Result<Self, CudaError> {
        let nvrtc = Nvrtc::loaded()?;
        let include = nvrtc.toolkit().include.iter().map(|dir| format!("-I{}", dir.display()));
        let fixed =
            [format!("--gpu-architecture={arch}"), "--std=c++17".into(), format!("-DKIVI_BLOCK={BLOCK}")];
        let defines = defines.iter().map(|&define| define.to_owned());
        let options = fixed.into_iter().chain(include).chain(defines).collect();
        Ok(Self { nvrtc, arch: arch.to_owned(), options, limits })
    }

    /// The options for `source`: the common ones, the sizes of its structs, the shape.
    fn options(&self, source: &Source, shape: Option<Shape>) -> Vec<String> {
        let sizes = source.sizes.iter().map(|(name, size)| format!("-DSIZEOF_{name}={size}"));
        let plan = shape.and_then(|shape| Some((shape, shape.plan(self.limits)?)));
        let shape = plan.map_or(Vec::new(), |(shape, plan)| shape.defines(plan));
        self.options.iter().cloned().chain(sizes).chain(shape).collect()
    }

    fn compile(&self, source: &Source, shape: Option<Shape>) -> Result<Vec<u8>, CudaError> {
        let input = Input { file: source.file, text: source.text, headers: HEADERS };
        self.nvrtc.compile(&input, &self.options(source, shape)).map_err(|log| CudaError::Compile {
            file: source.file,
            arch: self.arch.clone(),
            log,
        })
    }

    /// The name under which compiled `source` is kept.
    fn entry(&self, source: &Source, shape: Option<Shape>) -> String {
        let mut hash = disk::Hash::default();
        for (name, text) in HEADERS {
            hash.add(name).add(text);
        }
        hash.add(source.file).add(source.text).add(self.nvrtc.version()).add(self.nvrtc.headers_hash());
        // Where CUDA's headers lie does not matter, what is in them does.
        for option in self.options(source, shape).iter().filter(|option| !option.starts_with("-I")) {
            hash.add(option);
        }
        let stem = source.file.trim_end_matches(".cu");
        format!("{stem}-{}-{:032x}.cubin", self.arch, hash.finish())
    }
}

/// File and shape.
type ModuleKey = (&'static str, Option<Shape>);

/// The kernels of a device, compiled as they are asked for.
pub(crate) struct Jit {
    compiler: Compiler,
    modules: Mutex<HashMap<ModuleKey, Arc<CudaModule>>>,
    functions: Mutex<HashMap<Variant, CudaFunction>>,
}

/// Locks; what a thread that panicked left behind is whole, as every insertion is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jit {
    /// Finds and loads NVRTC; compiles nothing yet.
    pub fn new(arch: &str, limits: Limits, defines: &[&str]) -> Result<Self, CudaError> {
        let compiler = Compiler::new(arch, limits, defines)?;
        loadable(compiler.nvrtc.version())?;
        Ok(Self { compiler, modules: Mutex::default(), functions: Mutex::default() })
    }

    /// How a kernel of this shape is launched; none if the device is too small for it.
    pub fn plan(&self, shape: Shape) -> Option<Plan> {
        shape.plan(self.compiler.limits)
    }

    /// The kernel `variant` of `source`.
    pub fn function(
        &self,
        context: &Arc<CudaContext>,
        source: &'static Source,
        variant: Variant,
    ) -> Result<CudaFunction, CudaError> {
        if let Some(function) = lock(&self.functions).get(&variant) {
            return Ok(function.clone());
        }
        let module = self.module(context, source, variant.shape)?;
        let failed = CudaError::driver(variant.kernel);
        let function = module.load_function(variant.kernel).map_err(failed)?;
        let set = |attribute, to: usize| {
            function.set_attribute(attribute, to as i32).map_err(CudaError::driver(variant.kernel))
        };
        if variant.shared > 0 {
            set(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, variant.shared)?;
        }
        if source.streaming {
            set(Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 0)?;
        }
        lock(&self.functions).insert(variant, function.clone());
        Ok(function)
    }

    fn module(
        &self,
        context: &Arc<CudaContext>,
        source: &'static Source,
        shape: Option<Shape>,
    ) -> Result<Arc<CudaModule>, CudaError> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(&(source.file, shape)) {
            return Ok(Arc::clone(module));
        }
        let module = self.load(context, source, shape)?;
        modules.insert((source.file, shape), Arc::clone(&module));
        Ok(module)
    }

    /// From the disk if it is there and the driver takes it, else compiled.
    fn load(
        &self,
        context: &Arc<CudaContext>,
        source: &Source,
        shape: Option<Shape>,
    ) -> Result<Arc<CudaModule>, CudaError> {
        let entry = self.compiler.entry(source, shape);
        // Another `Jit` of this process may be compiling the same: one does, the others read what it kept.
        let turn = disk::turn(&entry);
        let _mine = lock(&turn);
        if let Some(cubin) = disk::read(&entry)
            && let Ok(module) = context.load_module(Ptx::from_binary(cubin))
        {
            return Ok(module);
        }
        let start = Instant::now();
        tracing::info!("compiling CUDA kernels: {} for {}", source.file, self.compiler.arch);
        let cubin = self.compiler.compile(source, shape)?;
        tracing::debug!("{} took {:.1} s", source.file, start.elapsed().as_secs_f64());
        disk::write(&entry, &cubin);
        context.load_module(Ptx::from_binary(cubin)).map_err(CudaError::driver("loading compiled kernels"))
    }
}

/// Fails if the driver is of an older CUDA than NVRTC, whose machine code it would not load; within a major version it does.
fn loadable(nvrtc: &str) -> Result<(), CudaError> {
    let major: Option<i32> = nvrtc.split('.').next().and_then(|major| major.parse().ok());
    match (probe::driver_version(), major) {
        (Some((driver, minor)), Some(major)) if driver < major => {
            Err(CudaError::OldDriver { driver: format!("{driver}.{minor}"), nvrtc: nvrtc.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Version of NVRTC, and where it is.
///
/// # Errors
/// [`CudaError::NoToolkit`] or [`CudaError::Library`].
pub fn nvrtc_version() -> Result<(String, String), CudaError> {
    let nvrtc = Nvrtc::loaded()?;
    Ok((nvrtc.version().to_owned(), nvrtc.toolkit().library.display().to_string()))
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
    /// For how many layouts of the cache it was compiled.
    pub variants: usize,
    /// Bytes of machine code and tables.
    pub bytes: usize,
}

/// Compiles every kernel for `arch` (`sm_80`, `sm_90a`, ..), for every type of activations. With a `turn`, such as the place in
/// [`ARCHS`], those that are compiled for a layout of the cache have one type, another for the next layout and on the next turn:
/// two turns have all of them. Needs no GPU, and neither reads nor writes the cache.
///
/// # Errors
/// [`CudaError::NoToolkit`], or [`CudaError::Compile`] for the first source that does not compile.
pub fn compile_only(arch: &str, turn: Option<usize>) -> Result<Vec<Compiled>, CudaError> {
    let (f16, bf16) = std::thread::scope(|scope| {
        let other = scope.spawn(|| compile_for::<bf16>(arch, turn));
        (compile_for::<f16>(arch, turn.map(|turn| turn + 1)), other.join())
    });
    let mut compiled = f16?;
    compiled.extend(bf16.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    Ok(compiled)
}

fn compile_for<A: Act>(arch: &str, turn: Option<usize>) -> Result<Vec<Compiled>, CudaError> {
    let limits = Limits::of(arch);
    let compiler = Compiler::new(arch, limits, &[A::DEFINE])?;
    let is_due = |at: usize| turn.is_none_or(|turn| (turn + at).is_multiple_of(2));
    let shapes = Shape::covering().into_iter().enumerate();
    let shapes = shapes.filter(|(at, shape)| is_due(*at) && shape.plan(limits).is_some());
    let shapes: Vec<Option<Shape>> = shapes.map(|(_, shape)| Some(shape)).collect();
    let variants = |source: &&'static Source| if source.shaped { shapes.clone() } else { vec![None] };
    let compile = |source: &&'static Source| {
        let sizes = variants(source).into_iter().map(|shape| Ok(compiler.compile(source, shape)?.len()));
        let bytes = sizes.sum::<Result<usize, CudaError>>()?;
        Ok(Compiled { file: source.file, act: A::DTYPE.name(), variants: variants(source).len(), bytes })
    };
    ops::SOURCES.iter().map(compile).collect()
}
