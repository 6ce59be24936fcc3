//! Measurements, as lines of a table and as JSON.

use serde_json::{Value, json};

use super::case::Case;
use super::measure::Timing;
use super::torch::Peers;

/// Reading so many bytes.
pub struct Read {
    pub bytes: usize,
    pub sets: usize,
    pub timing: Timing,
}

/// A case, measured.
pub struct Row {
    pub case: Case,
    pub sets: usize,
    pub timing: Timing,
    /// Bytes a second at which as many are read.
    pub read: Option<f64>,
    /// Seconds of the same at 16 bits.
    pub fp16: Option<f64>,
    pub torch: Peers,
    /// Relative error of the result, for attention.
    pub error: Option<f64>,
}

/// The heads of the columns.
pub fn header() -> String {
    format!(
        "{:<13} {:<15} {:>4} {:>5} {:>9} {:>9} {:>6} {:>7} {:>6} {:>8} {:>9} {:>9} {:>8} {:>8} {:>7}",
        "what",
        "heads:seqs:len",
        "bits",
        "group",
        "MiB",
        "us",
        "TB/s",
        "of read",
        "vs 16",
        "TFLOP/s",
        "flash us",
        "cudnn us",
        "vs best",
        "error",
        "samples"
    )
}

/// `-` for what there is not.
fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".into())
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Read {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.timing.seconds
    }

    pub fn line(&self) -> String {
        let (mib, us, rate) = (mib(self.bytes), 1e6 * self.timing.seconds, self.rate() / 1e12);
        let samples = self.timing.samples;
        format!("{:<13} {:<26} {mib:>9.2} {us:>9.2} {rate:>6.2} {:>61} {samples:>7}", "read", "", "")
    }

    pub fn to_json(&self) -> Value {
        json!({
            "bytes": self.bytes,
            "seconds": self.timing.seconds,
            "bytes_per_second": self.rate(),
            "sets": self.sets,
            "samples": self.timing.samples,
        })
    }
}

impl Row {
    fn rate(&self) -> f64 {
        self.case.bytes() as f64 / self.timing.seconds
    }

    fn share(&self) -> Option<f64> {
        self.read.map(|read| self.rate() / read)
    }

    fn vs_fp16(&self) -> Option<f64> {
        self.fp16.map(|fp16| fp16 / self.timing.seconds)
    }

    /// How many times faster it is than the fastest of PyTorch.
    fn vs_best(&self) -> Option<f64> {
        self.torch.values().copied().reduce(f64::min).map(|best| best / self.timing.seconds)
    }

    fn tflops(&self) -> Option<f64> {
        self.case.flops().map(|flops| flops / self.timing.seconds / 1e12)
    }

    fn group(&self) -> Option<usize> {
        let config = self.case.layout.config();
        config.is_quantized().then(|| config.group_size())
    }

    pub fn line(&self) -> String {
        let times = |x: f64| format!("{x:.2}x");
        let us = |name: &str| or_dash(self.torch.get(name).map(|seconds| format!("{:.2}", 1e6 * seconds)));
        format!(
            "{:<13} {:<15} {:>4} {:>5} {:>9.2} {:>9.2} {:>6.2} {:>7} {:>6} {:>8} {:>9} {:>9} {:>8} {:>8} {:>7}",
            self.case.kind.name(),
            self.case.shape.to_string(),
            self.case.bits().get(),
            or_dash(self.group().map(|group| group.to_string())),
            mib(self.case.bytes()),
            1e6 * self.timing.seconds,
            self.rate() / 1e12,
            or_dash(self.share().map(|share| format!("{:.0}%", 100.0 * share))),
            or_dash(self.vs_fp16().map(times)),
            or_dash(self.tflops().map(|x| format!("{x:.1}"))),
            us("flash"),
            us("cudnn"),
            or_dash(self.vs_best().map(times)),
            or_dash(self.error.map(|error| format!("{error:.1e}"))),
            self.timing.samples
        )
    }

    pub fn to_json(&self) -> Value {
        json!({
            "what": self.case.kind.name(),
            "shape": self.case.shape.to_string(),
            "bits": self.case.bits().get(),
            "group_size": self.group(),
            "bytes": self.case.bytes(),
            "seconds": self.timing.seconds,
            "bytes_per_second": self.rate(),
            "share_of_read": self.share(),
            "times_faster_than_16_bits": self.vs_fp16(),
            "tflops": self.tflops(),
            "torch_seconds": self.torch,
            "times_faster_than_torch": self.vs_best(),
            "error": self.error,
            "sets": self.sets,
            "samples": self.timing.samples,
        })
    }
}
