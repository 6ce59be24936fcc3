//! Every kernel compiles; no GPU is needed, NVRTC is. `cargo xtask test-kernels --compile-only` does it for every architecture.

use kivi_kernels_cuda::CudaError;
use kivi_kernels_cuda::jit::{Toolkit, compile_only};
use kivi_kernels_ref::conformance::skip;

#[test]
fn every_kernel_compiles() {
    if let Err(error @ CudaError::NoToolkit { .. }) = Toolkit::find() {
        return skip(&format!("compiling kernels: {error}"));
    }
    let compiled = compile_only("sm_90a").unwrap_or_else(|error| panic!("{error}"));
    assert!(compiled.iter().all(|source| source.bytes > 0));
}

#[test]
fn an_unknown_architecture_is_an_error_with_the_compilers_words() {
    match compile_only("sm_1") {
        Err(CudaError::NoToolkit { .. }) => skip("compiling kernels: no NVRTC"),
        Err(CudaError::Compile { arch, log, .. }) => {
            assert!(arch == "sm_1" && log.contains("gpu-architecture"), "{log}")
        }
        other => panic!("{other:?}"),
    }
}
