//! kivi-quant
