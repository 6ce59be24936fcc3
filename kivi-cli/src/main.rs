//! kivi-cli
fn main() {}
