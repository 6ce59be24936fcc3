//! LongBench (Bai et al., arXiv 2308.14508): 21 tasks over long texts.

pub mod tasks;
