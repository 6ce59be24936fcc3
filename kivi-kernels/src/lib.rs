//! kivi-kernels
