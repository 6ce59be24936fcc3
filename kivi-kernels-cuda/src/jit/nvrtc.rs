//! NVRTC, loaded from where it was found (cudarc's own bindings load it by name alone, which finds no Python wheel).

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, ptr};

use libloading::Library;

use super::Toolkit;
use super::disk::Hash;
use crate::CudaError;

/// CUDA's headers that kernels include, and what these include of the same.
const CUDA_HEADERS: &[&str] = &["cuda_fp16.h", "cuda_fp16.hpp", "cuda_bf16.h", "cuda_bf16.hpp"];

type Program = *mut c_void;

/// The functions of NVRTC that are called; all return 0 for success.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
}

impl Functions {
    fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: these are NVRTC's functions as its documentation declares them, the same since CUDA 11.1; they are called
        // only while `Nvrtc` keeps the library loaded.
        unsafe {
            Ok(Self {
                version: *library.get(b"nvrtcVersion\0")?,
                error_string: *library.get(b"nvrtcGetErrorString\0")?,
                create: *library.get(b"nvrtcCreateProgram\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                log: *library.get(b"nvrtcGetProgramLog\0")?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize\0")?,
                cubin: *library.get(b"nvrtcGetCUBIN\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
            })
        }
    }

    /// What NVRTC calls the failure `code`.
    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: returns a static string for every number.
        let text = unsafe { CStr::from_ptr((self.error_string)(code)) };
        Err(text.to_string_lossy().into_owned())
    }
}

/// A file to compile and what it may include.
pub(super) struct Input<'a> {
    pub file: &'a str,
    pub text: &'a str,
    /// Names and texts.
    pub headers: &'a [(&'a str, &'a str)],
}

/// The compiler.
pub(super) struct Nvrtc {
    functions: Functions,
    toolkit: Toolkit,
    version: String,
    headers_hash: String,
    /// Last: the functions are the library's.
    _libraries: Vec<Library>,
}

impl Nvrtc {
    /// The process's one; loaded at the first call and never unloaded.
    pub fn loaded() -> Result<Arc<Self>, CudaError> {
        static LOADED: Mutex<Option<Arc<Nvrtc>>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nvrtc) = &*loaded {
            return Ok(Arc::clone(nvrtc));
        }
        let nvrtc = Arc::new(Self::load(Toolkit::find()?)?);
        *loaded = Some(Arc::clone(&nvrtc));
        Ok(nvrtc)
    }

    fn load(toolkit: Toolkit) -> Result<Self, CudaError> {
        let failed = |why: String| CudaError::Library { path: toolkit.library.clone(), why };
        // SAFETY: NVRTC is made to be loaded by any process; that these files are NVRTC's follows from name and place.
        let open = |path: &PathBuf| unsafe { Library::new(path) };
        // NVRTC opens its built-ins by name alone, and finds what is loaded already. If one of them cannot be loaded,
        // NVRTC says so when it compiles.
        let mut libraries: Vec<Library> =
            toolkit.builtins().iter().filter_map(|path| open(path).ok()).collect();
        let library = open(&toolkit.library).map_err(|error| failed(error.to_string()))?;
        let functions = Functions::of(&library).map_err(|error| failed(error.to_string()))?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two numbers.
        functions.check(unsafe { (functions.version)(&mut major, &mut minor) }).map_err(failed)?;
        let headers_hash = headers_hash(&toolkit);
        libraries.push(library);
        Ok(Self {
            functions,
            version: format!("{major}.{minor}"),
            headers_hash,
            toolkit,
            _libraries: libraries,
        })
    }

    pub fn toolkit(&self) -> &Toolkit {
        &self.toolkit
    }

    /// `major.minor`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A hash of the text of CUDA's headers.
    pub fn headers_hash(&self) -> &str {
        &self.headers_hash
    }

    /// Machine code of `input` for the architecture that `options` name; an error is what the compiler printed.
    pub fn compile(&self, input: &Input<'_>, options: &[String]) -> Result<Vec<u8>, String> {
        let options = c_strings(options.iter().map(String::as_str))?;
        let option_ptrs = pointers(&options);
        let program = Handle::new(&self.functions, input)?;
        // SAFETY: the program lives, and so do the options' strings, until the end of this function.
        let result =
            unsafe { (self.functions.compile)(program.raw, options.len() as c_int, option_ptrs.as_ptr()) };
        if let Err(error) = self.functions.check(result) {
            let log = program.bytes(self.functions.log_size, self.functions.log)?;
            let log = String::from_utf8_lossy(&log).trim_matches(['\0', '\n']).to_owned();
            return Err(format!("{error}\n{log}"));
        }
        program.bytes(self.functions.cubin_size, self.functions.cubin)
    }
}

/// A program, destroyed when dropped.
struct Handle<'a> {
    functions: &'a Functions,
    raw: Program,
}

impl<'a> Handle<'a> {
    fn new(functions: &'a Functions, input: &Input<'_>) -> Result<Self, String> {
        let [text, file] = [c_string(input.text)?, c_string(input.file)?];
        let names = c_strings(input.headers.iter().map(|header| header.0))?;
        let texts = c_strings(input.headers.iter().map(|header| header.1))?;
        let (name_ptrs, text_ptrs) = (pointers(&names), pointers(&texts));
        let mut raw = ptr::null_mut();
        // SAFETY: all strings end with 0 and live until the call returns, which copies them; there are as many texts as
        // names.
        let result = unsafe {
            let (count, texts, names) = (names.len() as c_int, text_ptrs.as_ptr(), name_ptrs.as_ptr());
            (functions.create)(&mut raw, text.as_ptr(), file.as_ptr(), count, texts, names)
        };
        functions.check(result)?;
        Ok(Self { functions, raw })
    }

    /// What `get` writes, `size` bytes.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: the program lives; writes one number.
        self.functions.check(unsafe { size(self.raw, &mut len) })?;
        let mut bytes = vec![0_u8; len];
        // SAFETY: the program lives; writes the number of bytes that `size` said.
        self.functions.check(unsafe { get(self.raw, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed only here.
        unsafe { (self.functions.destroy)(&mut self.raw) };
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|error| error.to_string())
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<CString>, String> {
    texts.map(c_string).collect()
}

/// Addresses of `strings`, to be used while they live.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

/// A hash of the CUDA headers that kernels include; one that cannot be read is empty, and nothing compiles then.
fn headers_hash(toolkit: &Toolkit) -> String {
    let mut hash = Hash::default();
    for name in CUDA_HEADERS {
        let found = toolkit.include.iter().find_map(|dir| fs::read(dir.join(name)).ok());
        hash.add(found.unwrap_or_default());
    }
    format!("{:032x}", hash.finish())
}
