//! The CPU backend is held to the suite as any other.

use kivi_kernels_ref::Cpu;

kivi_kernels_ref::conformance_tests!(Cpu::<f32>::new());
