//! kivi-kernels-ref
