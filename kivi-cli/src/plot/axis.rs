//! Axes: where a number is, and which numbers stand there.

use anyhow::{Result, bail};

use super::style::{SMALL, width};
use crate::format::thousands;

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// In equal steps, from zero on.
    Linear,
    /// In equal steps of whole numbers, from the smallest number on.
    Places,
    /// In powers of two where the largest number is at least 16 times the smallest, else in whole steps from zero on.
    Doubling,
    /// In powers of ten where the largest number is at least 30 times the smallest, else in equal steps.
    Decades,
}

/// A range of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// 2, 10, or none if it is linear.
    base: Option<f64>,
    /// The smallest step.
    least: f64,
    from: f64,
    to: f64,
}

/// A number at an axis: the share of its length, and what it says.
pub type Tick = (f64, String);

/// Numbers beyond this are none that were measured, and cannot be drawn.
const MOST: f64 = 1e100;
/// Between what stands at ticks.
const GAP: f64 = 12.0;

impl Axis {
    /// An axis that has all these numbers.
    ///
    /// # Errors
    /// A number that cannot be drawn.
    pub fn new(values: impl Iterator<Item = f64> + Clone, scale: Scale) -> Result<Self> {
        if let Some(value) = values.clone().find(|value| value.is_nan() || value.abs() > MOST) {
            bail!("expected numbers up to {MOST:e}, found {value:e}");
        }
        let (min, max) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        let base = match scale {
            Scale::Doubling if min > 0.0 && max >= 16.0 * min => Some(2.0),
            Scale::Decades if min > 0.0 && max >= 30.0 * min => Some(10.0),
            _ => None,
        };
        if let Some(base) = base {
            let (from, to) = (min.log(base), max.log(base));
            let room = 0.04 * (to - from);
            return Ok(Self { base: Some(base), least: 1.0, from: from - room, to: to + room });
        }
        let least = if matches!(scale, Scale::Places | Scale::Doubling) { 1.0 } else { 0.0 };
        if scale == Scale::Places && max > min {
            let room = 0.04 * (max - min);
            return Ok(Self { base: None, least, from: min - room, to: max + room });
        }
        let (min, max) = if min > max { (0.0, 1.0) } else { (min.min(0.0), max.max(0.0)) };
        let room = if max > min { 0.05 * (max - min) } else { 1.0 };
        Ok(Self { base: None, least, from: if min < 0.0 { min - room } else { 0.0 }, to: max + room })
    }

    /// The share of the axis at which a number is.
    pub fn place(&self, value: f64) -> f64 {
        let value = self.base.map_or(value, |base| value.log(base));
        (value - self.from) / (self.to - self.from)
    }

    /// Whether it has no zero.
    pub fn is_logarithmic(&self) -> bool {
        self.base.is_some()
    }

    /// Ticks beside a vertical axis of this height.
    pub fn vertical(&self, height: f64) -> Vec<Tick> {
        self.ticks((height / 34.0) as usize)
    }

    /// Ticks under a horizontal axis of this width, as many as have room beside each other.
    pub fn horizontal(&self, length: f64) -> Vec<Tick> {
        let fits = |ticks: &Vec<Tick>| {
            let half = |tick: &Tick| width(SMALL, &tick.1) / 2.0;
            let apart = |a: &Tick, b: &Tick| (b.0 - a.0) * length >= half(a) + half(b) + GAP;
            ticks.windows(2).all(|pair| apart(&pair[0], &pair[1]))
        };
        (1..=10).rev().map(|most| self.ticks(most)).find(fits).unwrap_or_else(|| {
            let mut one = self.ticks(1);
            one.truncate(1);
            one
        })
    }

    /// About `most` round numbers.
    fn ticks(&self, most: usize) -> Vec<Tick> {
        let values = match self.base {
            None => self.steps(most.max(1)),
            Some(base) => self.powers(base, most.max(1)),
        };
        let share = |(value, text): (f64, String)| (self.place(value), text);
        values.into_iter().map(share).filter(|(share, _)| (-1e-9..=1.0 + 1e-9).contains(share)).collect()
    }

    fn steps(&self, most: usize) -> Vec<(f64, String)> {
        let least = ((self.to - self.from) / most as f64).max(self.least);
        let power = 10_f64.powi(least.log10().floor() as i32);
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= least);
        let step = step.unwrap_or(10.0 * power);
        let (first, last) = ((self.from / step).ceil() as i64, (self.to / step).floor() as i64);
        (first..=last).map(|i| (i as f64 * step, number(i as f64 * step, step))).collect()
    }

    fn powers(&self, base: f64, most: usize) -> Vec<(f64, String)> {
        let (first, last) = (self.from.ceil() as i32, self.to.floor() as i32);
        let stride = ((last - first + 1).max(1) as usize).div_ceil(most);
        let label = |power: i32| if base == 2.0 { binary(power) } else { decade(power) };
        // From the last one back, so that the stride keeps what is most asked for.
        let mut out: Vec<_> =
            (first..=last).rev().step_by(stride).map(|power| (base.powi(power), label(power))).collect();
        out.reverse();
        out
    }
}

/// `2^power`: `512`, `4K`, `128K`, `1M`.
fn binary(power: i32) -> String {
    match power {
        ..0 => format!("1/{}", 2_f64.powi(-power)),
        0..10 => (1 << power).to_string(),
        10..20 => format!("{}K", 1 << (power - 10)),
        20..30 => format!("{}M", 1 << (power - 20)),
        30..40 => format!("{}G", 1 << (power - 30)),
        40.. => format!("2^{power}"),
    }
}

fn decade(power: i32) -> String {
    match power {
        -4..0 => format!("{:.*}", -power as usize, 10_f64.powi(power)),
        0..7 => thousands(10_u64.pow(power as u32)),
        _ => format!("1e{power}"),
    }
}

/// A number with the digits that its step needs.
pub fn number(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !(1e-5..1e6).contains(&step) {
        return format!("{value:.1e}");
    }
    // 2.5 has a digit more than 2.
    let digits = (0..7).find(|digits| {
        let scaled = step * 10_f64.powi(*digits);
        (scaled - scaled.round()).abs() < 1e-6
    });
    let text = format!("{:.*}", digits.unwrap_or(7) as usize, value.abs());
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
    let whole = whole.parse().map_or_else(|_| whole.to_owned(), thousands);
    let sign = if value < 0.0 { "-" } else { "" };
    rest.map_or_else(|| format!("{sign}{whole}"), |rest| format!("{sign}{whole}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::style::load_font;

    fn labels(values: &[f64], scale: Scale) -> Vec<String> {
        load_font().unwrap();
        let axis = Axis::new(values.iter().copied(), scale).unwrap();
        for value in values {
            assert!((-1e-9..=1.0 + 1e-9).contains(&axis.place(*value)), "{value} is on the axis");
        }
        axis.horizontal(300.0).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(&[0.0, 10.0], Scale::Linear), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(&[0.3], Scale::Linear), ["0", "0.05", "0.10", "0.15", "0.20", "0.25", "0.30"]);
        assert_eq!(labels(&[0.0, 131_072.0], Scale::Doubling), ["0", "50,000", "100,000"]);
        assert_eq!(labels(&[512.0, 131_072.0], Scale::Doubling)[..3], ["512", "2K", "8K"]);
        assert_eq!(labels(&[1e-4, 1.0], Scale::Decades), ["0.0001", "0.001", "0.01", "0.1", "1"]);
        assert_eq!(labels(&[3.0, 4.0], Scale::Doubling), ["0", "1", "2", "3", "4"]);
        assert_eq!(labels(&[256.0, 512.0], Scale::Places), ["250", "300", "350", "400", "450", "500"]);
    }

    #[test]
    fn any_number_has_an_axis() {
        for values in
            [&[][..], &[0.0], &[-3.0, -1.0], &[1e99], &[1e-300, 1e99], &[1e-300], &[7.0, 7.0], &[-1e99, 1e99]]
        {
            for scale in [Scale::Linear, Scale::Places, Scale::Doubling, Scale::Decades] {
                assert!(labels(values, scale).len() <= 11, "{values:?}");
            }
        }
        for value in [f64::NAN, f64::INFINITY, 1e101] {
            assert!(Axis::new([1.0, value].into_iter(), Scale::Linear).is_err());
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(number(1234.5, 0.5), "1,234.5");
        assert_eq!(number(-20_000.0, 5000.0), "-20,000");
        assert_eq!(number(2.5e9, 5e8), "2.5e9");
        assert_eq!([0, 9, 12, 27, 31, 50, -1].map(binary), ["1", "512", "4K", "128M", "2G", "2^50", "1/2"]);
    }
}
