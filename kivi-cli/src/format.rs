//! Numbers for people.

use std::path::Path;

/// `1234567` as `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in MiB, without the unit: two digits after the point, one from 100 on.
pub fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    if mib < 100.0 { format!("{mib:.2}") } else { format!("{mib:.1}") }
}

/// Bytes in MiB or GiB.
pub fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < 10 * GIB {
        format!("{} MiB", mib(bytes))
    } else {
        format!("{:.1} GiB", bytes as f64 / GIB as f64)
    }
}

/// Tokens per second with about four digits; `-` where no time passed.
pub fn rate(tokens: usize, seconds: f64) -> String {
    match tokens as f64 / seconds {
        rate if !rate.is_finite() || tokens == 0 => "-".into(),
        rate if rate < 1000.0 => format!("{rate:.1}"),
        rate => thousands(rate as u64),
    }
}

/// How `used` compares with `fp16`: `5.0x less`.
pub fn times_less(used: u64, fp16: u64) -> String {
    match (used, fp16) {
        (0, _) | (_, 0) => "empty".into(),
        (used, fp16) if used == fp16 => "the same".into(),
        (used, fp16) if used < fp16 => format!("{:.1}x less", fp16 as f64 / used as f64),
        (used, fp16) => format!("{:.1}x more", used as f64 / fp16 as f64),
    }
}

/// A path as messages name it, on one line.
pub fn path(path: &Path) -> String {
    path.display().to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1 << 19, 100 << 20].map(mib), ["0.50", "100.0"]);
        assert_eq!([1 << 20, 16 << 30].map(size), ["1.00 MiB", "16.0 GiB"]);
        assert_eq!([rate(10, 0.0), rate(0, 1.0), rate(10, 4.0), rate(5000, 2.0)], ["-", "-", "2.5", "2,500"]);
        assert_eq!(
            [times_less(2, 10), times_less(4, 4), times_less(8, 4)],
            ["5.0x less", "the same", "2.0x more"]
        );
    }
}
