//! The CUDA backend is held to the suite as any other, with both types of activations.

mod act_f16 {
    use half::f16;
    use kivi_kernels_cuda::Cuda;

    kivi_kernels_ref::conformance_tests!(try Cuda::<f16>::new(0));
}

mod act_bf16 {
    use half::bf16;
    use kivi_kernels_cuda::Cuda;

    kivi_kernels_ref::conformance_tests!(try Cuda::<bf16>::new(0));
}
