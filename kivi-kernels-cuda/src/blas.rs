//! cuBLASLt, loaded from where CUDA was found: products of many rows. All matrices are of the type of activations, sums are f32.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaStream;
use kivi_kernels::DType;
use libloading::Library;

use crate::jit::Toolkit;
use crate::{CudaBuffer, CudaError};

/// Bytes that cuBLASLt has to work with.
const WORKSPACE: usize = 32 << 20;
/// Shapes whose algorithms are kept; prompts can have any number of rows.
const MOST_PLANS: usize = 4096;

// Of `cublas_api.h`, `library_types.h` and `cublasLt.h`, the same from CUDA 11 to 13.
const COMPUTE_32F: c_int = 68;
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const OP_T: i32 = 1;
const PREF_WORKSPACE: c_int = 1;
/// Of A; those of B, C and D follow.
const PREF_ALIGNMENT: c_int = 5;

type Object = *mut c_void;
type Create = unsafe extern "C" fn(*mut Object) -> c_int;
type Destroy = unsafe extern "C" fn(Object) -> c_int;
type Set = unsafe extern "C" fn(Object, c_int, *const c_void, usize) -> c_int;

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Heuristic {
    algo: [u64; 8],
    workspace: usize,
    status: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

struct Functions {
    create: Create,
    destroy: Destroy,
    desc_create: unsafe extern "C" fn(*mut Object, c_int, c_int) -> c_int,
    desc_destroy: Destroy,
    desc_set: Set,
    layout_create: unsafe extern "C" fn(*mut Object, c_int, u64, u64, i64) -> c_int,
    layout_destroy: Destroy,
    pref_create: Create,
    pref_destroy: Destroy,
    pref_set: Set,
    heuristic: unsafe extern "C" fn(
        Object,
        Object,
        Object,
        Object,
        Object,
        Object,
        Object,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> c_int,
    matmul: unsafe extern "C" fn(
        Object,
        Object,
        *const c_void,
        u64,
        Object,
        u64,
        Object,
        *const c_void,
        u64,
        Object,
        u64,
        Object,
        *const [u64; 8],
        u64,
        usize,
        *mut c_void,
    ) -> c_int,
}

impl Functions {
    fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: these are cuBLASLt's functions as its documentation declares them; they are called only while `Blas`
        // keeps the library loaded.
        unsafe {
            Ok(Self {
                create: *library.get(b"cublasLtCreate\0")?,
                destroy: *library.get(b"cublasLtDestroy\0")?,
                desc_create: *library.get(b"cublasLtMatmulDescCreate\0")?,
                desc_destroy: *library.get(b"cublasLtMatmulDescDestroy\0")?,
                desc_set: *library.get(b"cublasLtMatmulDescSetAttribute\0")?,
                layout_create: *library.get(b"cublasLtMatrixLayoutCreate\0")?,
                layout_destroy: *library.get(b"cublasLtMatrixLayoutDestroy\0")?,
                pref_create: *library.get(b"cublasLtMatmulPreferenceCreate\0")?,
                pref_destroy: *library.get(b"cublasLtMatmulPreferenceDestroy\0")?,
                pref_set: *library.get(b"cublasLtMatmulPreferenceSetAttribute\0")?,
                heuristic: *library.get(b"cublasLtMatmulAlgoGetHeuristic\0")?,
                matmul: *library.get(b"cublasLtMatmul\0")?,
            })
        }
    }
}

fn check(what: &'static str, status: c_int) -> Result<(), CudaError> {
    if status == 0 { Ok(()) } else { Err(CudaError::Blas { what, status }) }
}

/// An object of cuBLASLt, destroyed when dropped.
struct Owned {
    raw: Object,
    destroy: Destroy,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by the library, destroyed only here.
        unsafe { (self.destroy)(self.raw) };
    }
}

/// `out = x weight^T`, all row-major: rows of `n` outputs, of `k` inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub rows: u64,
    pub n: u64,
    pub k: u64,
    pub x_stride: u64,
    pub out_stride: u64,
    /// What the addresses of weight, x and out are multiples of, in bytes, at most 256.
    pub alignment: [u32; 3],
}

/// Addresses of a product.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub out: u64,
    pub x: u64,
    pub weight: u64,
}

impl Operands {
    /// For [`Shape::alignment`].
    pub fn alignment(&self) -> [u32; 3] {
        [self.weight, self.x, self.out].map(|address| 1 << address.trailing_zeros().min(8))
    }
}

/// How products of a shape are made.
struct Plan {
    weight: Owned,
    x: Owned,
    out: Owned,
    algo: [u64; 8],
}

/// A handle of cuBLASLt, its workspace, and the algorithms that it chose.
pub(crate) struct Blas {
    // Dropped in this order: the library last.
    plans: Mutex<HashMap<Shape, Option<Arc<Plan>>>>,
    desc: Owned,
    preference: Owned,
    handle: Owned,
    workspace: CudaBuffer<u32>,
    functions: Functions,
    dtype: c_int,
    _library: Library,
}

// SAFETY: cuBLASLt's objects belong to no thread; descriptions are not changed once they are shared, and preferences only
// under the lock of `plans`.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    /// For activations of type `act`; an error says why there are no products by cuBLASLt.
    pub fn new(stream: &Arc<CudaStream>, act: DType) -> Result<Self, CudaError> {
        let (library, functions) = load()?;
        stream.context().bind_to_thread().map_err(CudaError::driver("cuBLASLt"))?;
        let handle = made("a handle", functions.destroy, |raw| {
            // SAFETY: writes a handle.
            unsafe { (functions.create)(raw) }
        })?;
        let desc = made("a product", functions.desc_destroy, |raw| {
            // SAFETY: writes a description.
            unsafe { (functions.desc_create)(raw, COMPUTE_32F, R_32F) }
        })?;
        let transposed = OP_T;
        // SAFETY: the attribute is a 32-bit number.
        let set = unsafe { (functions.desc_set)(desc.raw, DESC_TRANSA, (&raw const transposed).cast(), 4) };
        check("a product", set)?;
        let preference = made("preferences", functions.pref_destroy, |raw| {
            // SAFETY: writes preferences.
            unsafe { (functions.pref_create)(raw) }
        })?;
        let bytes = WORKSPACE as u64;
        // SAFETY: the attribute is a 64-bit number.
        let set =
            unsafe { (functions.pref_set)(preference.raw, PREF_WORKSPACE, (&raw const bytes).cast(), 8) };
        check("preferences", set)?;
        let workspace = CudaBuffer::uninit(stream, WORKSPACE / 4)?;
        let dtype = if act == DType::Bf16 { R_16BF } else { R_16F };
        let plans = Mutex::default();
        Ok(Self { plans, desc, preference, handle, workspace, functions, dtype, _library: library })
    }

    /// Queues a product; false if cuBLASLt has no algorithm for it.
    ///
    /// # Safety
    /// The operands have the shape, and live until the product is done.
    pub unsafe fn product(
        &self,
        stream: &CudaStream,
        shape: Shape,
        operands: Operands,
    ) -> Result<bool, CudaError> {
        stream.context().bind_to_thread().map_err(CudaError::driver("cuBLASLt"))?;
        let Some(plan) = self.plan(shape)? else { return Ok(false) };
        let (one, zero) = (1_f32, 0_f32);
        let Operands { out, x, weight } = operands;
        // SAFETY: as the caller says; column by column, as cuBLASLt reads matrices, this is out^T = (weight^T)^T x^T. The
        // workspace has its size, and products that use it are one after the other in the stream.
        let status = unsafe {
            (self.functions.matmul)(
                self.handle.raw,
                self.desc.raw,
                (&raw const one).cast(),
                weight,
                plan.weight.raw,
                x,
                plan.x.raw,
                (&raw const zero).cast(),
                out,
                plan.out.raw,
                out,
                plan.out.raw,
                &plan.algo,
                self.workspace.device_ptr(),
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        };
        check("a product", status).map(|()| true)
    }

    fn plan(&self, shape: Shape) -> Result<Option<Arc<Plan>>, CudaError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&shape) {
            return Ok(plan.clone());
        }
        if plans.len() >= MOST_PLANS {
            plans.clear();
        }
        let plan = self.find(shape)?.map(Arc::new);
        plans.insert(shape, plan.clone());
        Ok(plan)
    }

    /// What cuBLASLt recommends for a shape.
    fn find(&self, shape: Shape) -> Result<Option<Plan>, CudaError> {
        let Shape { rows, n, k, x_stride, out_stride, alignment: [weight, x, out] } = shape;
        for (i, bytes) in [weight, x, out, out].iter().enumerate() {
            let attribute = PREF_ALIGNMENT + i as c_int;
            // SAFETY: the attribute is a 32-bit number.
            let set = unsafe {
                (self.functions.pref_set)(self.preference.raw, attribute, (&raw const *bytes).cast(), 4)
            };
            check("preferences", set)?;
        }
        let [weight, x, out] =
            [self.layout(k, n, k)?, self.layout(k, rows, x_stride)?, self.layout(n, rows, out_stride)?];
        let mut best = Heuristic { algo: [0; 8], workspace: 0, status: 0, waves: 0.0, reserved: [0; 4] };
        let mut found = 0;
        let (function, preference) = (self.functions.heuristic, self.preference.raw);
        let (handle, desc, a, b, c) = (self.handle.raw, self.desc.raw, weight.raw, x.raw, out.raw);
        // SAFETY: all objects live; there is room for the one result that is asked for.
        let status = unsafe { function(handle, desc, a, b, c, c, preference, 1, &mut best, &mut found) };
        let usable = status == 0 && found > 0 && best.status == 0;
        Ok(usable.then_some(Plan { weight, x, out, algo: best.algo }))
    }

    /// A matrix column by column.
    fn layout(&self, rows: u64, cols: u64, stride: u64) -> Result<Owned, CudaError> {
        made("a matrix", self.functions.layout_destroy, |raw| {
            // SAFETY: writes a layout.
            unsafe { (self.functions.layout_create)(raw, self.dtype, rows, cols, stride as i64) }
        })
    }
}

fn made(
    what: &'static str,
    destroy: Destroy,
    create: impl FnOnce(*mut Object) -> c_int,
) -> Result<Owned, CudaError> {
    let mut raw = ptr::null_mut();
    check(what, create(&mut raw))?;
    Ok(Owned { raw, destroy })
}

/// The library beside NVRTC, else where the system looks.
fn load() -> Result<(Library, Functions), CudaError> {
    let names: &[&str] = match cfg!(windows) {
        true => &["cublasLt64_13.dll", "cublasLt64_12.dll"],
        false => &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
    };
    let paths = Toolkit::find().map(|toolkit| toolkit.cublas_lt()).unwrap_or_default();
    let mut why = String::new();
    for path in paths.into_iter().chain(names.iter().map(PathBuf::from)) {
        // SAFETY: cuBLASLt is made to be loaded by any process; that a file is cuBLASLt follows from its name.
        let loaded = unsafe { Library::new(&path) };
        match loaded.and_then(|library| Ok((Functions::of(&library)?, library))) {
            Ok((functions, library)) => return Ok((library, functions)),
            Err(error) if why.is_empty() => why = error.to_string(),
            Err(_) => {}
        }
    }
    Err(CudaError::Library { path: names[0].into(), why })
}
