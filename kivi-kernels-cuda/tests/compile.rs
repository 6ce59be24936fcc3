//! Every kernel compiles for every architecture that is supported; no GPU is needed, NVRTC is.

use kivi_kernels_cuda::CudaError;
use kivi_kernels_cuda::jit::{ARCHS, Toolkit, compile_only};
use kivi_kernels_ref::conformance::skip;

#[test]
fn every_kernel_compiles_for_every_architecture() {
    if let Err(error @ CudaError::NoToolkit { .. }) = Toolkit::find() {
        return skip(&format!("compiling kernels: {error}"));
    }
    for arch in ARCHS {
        let compiled = compile_only(arch).unwrap_or_else(|error| panic!("{error}"));
        let bytes: usize = compiled.iter().map(|source| source.bytes).sum();
        println!("{arch}: {} sources, {bytes} bytes", compiled.len());
        assert!(compiled.iter().all(|source| source.bytes > 0));
    }
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
