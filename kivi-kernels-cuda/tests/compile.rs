//! What does not compile says why; no GPU is needed, NVRTC is. `cargo xtask test-kernels --compile-only` compiles every kernel.

use kivi_kernels_cuda::CudaError;
use kivi_kernels_cuda::jit::compile_only;
use kivi_kernels_ref::conformance::skip;

#[test]
fn an_unknown_architecture_is_an_error_with_the_compilers_words() {
    match compile_only("sm_1", None) {
        Err(CudaError::NoToolkit { .. }) => skip("compiling kernels: no NVRTC"),
        Err(CudaError::Compile { arch, log, .. }) => {
            assert!(arch == "sm_1" && log.contains("gpu-architecture"), "{log}")
        }
        other => panic!("{other:?}"),
    }
}
