//! The same attention by PyTorch, in another process.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Result, ensure};
use kivi_kernels::DType;
use serde_json::{Value, json};

use super::case::{Case, Kind};
use super::shape::{HEAD_DIM, Shape};

const SCRIPT: &str = include_str!("sdpa.py");

/// Seconds of each backend's best variant, by its name.
pub type Peers = BTreeMap<String, f64>;

/// What PyTorch takes.
#[derive(Default)]
pub struct Torch(BTreeMap<(&'static str, Shape), Peers>);

impl Torch {
    /// Times the shapes of `cases` on device `ordinal`.
    pub fn measure(cases: &[Case], ordinal: usize, act: DType) -> Result<Self> {
        let spec = json!({
            "device": ordinal,
            "dtype": if act == DType::Bf16 { "bfloat16" } else { "float16" },
            "head_dim": HEAD_DIM,
            "decode": shapes(cases, Kind::Decode),
            "prefill": shapes(cases, Kind::Prefill),
        });
        let python = crate::golden::python()?;
        let output = Command::new(python).args(["-c", SCRIPT, &spec.to_string()]).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        let error = error.trim().lines().last().unwrap_or("no message");
        let torch = Self::parse(&String::from_utf8_lossy(&output.stdout));
        // What was measured before something went wrong is right.
        ensure!(output.status.success() || !torch.0.is_empty(), "{python}: {error}");
        if !output.status.success() {
            println!("PyTorch stopped early: {error}");
        }
        Ok(torch)
    }

    fn parse(lines: &str) -> Self {
        let mut torch = Self::default();
        for line in lines.lines() {
            if let Some((key, backend, seconds)) = measured(line) {
                let best = torch.0.entry(key).or_default().entry(backend).or_insert(f64::INFINITY);
                *best = best.min(seconds);
            }
        }
        torch
    }

    /// What it takes for the same as `case`; nothing if that was not measured.
    pub fn of(&self, case: &Case) -> Peers {
        self.0.get(&(case.kind.name(), case.shape)).cloned().unwrap_or_default()
    }
}

/// The shapes of `kind`, each once.
fn shapes(cases: &[Case], kind: Kind) -> Vec<String> {
    let mut shapes: Vec<Shape> =
        cases.iter().filter(|case| case.kind == kind).map(|case| case.shape).collect();
    shapes.dedup();
    shapes.iter().map(Shape::to_string).collect()
}

/// Kind and shape, backend, seconds; nothing for a line that says why there are none.
fn measured(line: &str) -> Option<((&'static str, Shape), String, f64)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let kinds = [Kind::Decode, Kind::Prefill];
    let kind = kinds.into_iter().find(|kind| line["what"] == kind.name())?;
    let shape = line["shape"].as_str()?.parse().ok()?;
    Some(((kind.name(), shape), line["backend"].as_str()?.to_owned(), line["seconds"].as_f64()?))
}

#[cfg(test)]
mod tests {
    use kivi_quant::{Bits, GroupSize};

    use super::super::case::{What, cases};
    use super::*;

    #[test]
    fn the_best_variant_of_each_backend_counts() {
        let lines = r#"
            {"what": "decode", "shape": "32/8:1:4096", "backend": "cudnn", "variant": "gqa", "seconds": 2e-5}
            {"what": "decode", "shape": "32/8:1:4096", "backend": "cudnn", "variant": "packed", "seconds": 1e-5}
            {"what": "decode", "shape": "32/8:1:4096", "backend": "flash", "variant": "gqa", "error": "no"}
            {"what": "decode", "shape": "32/8:1:131072", "error": "out of memory"}
            a warning"#;
        let torch = Torch::parse(lines);
        let shapes = [Shape::new(32, 8, 1, 4096), Shape::new(32, 8, 1, 131_072)];
        let cases = cases(&[What::Decode], &shapes, (&[Bits::B2], &[GroupSize::G32]), DType::F16).unwrap();
        assert_eq!(torch.of(&cases[0]), Peers::from([("cudnn".to_owned(), 1e-5)]));
        assert!(torch.of(&cases[1]).is_empty());
        assert_eq!(super::shapes(&cases, Kind::Decode), ["32/8:1:4096", "32/8:1:131072"]);
    }
}
