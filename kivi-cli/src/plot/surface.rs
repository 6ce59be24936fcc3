//! Surfaces over tokens and channels: each channel is a ridge before the next one.

use anyhow::{Result, bail};

use super::axis::{Axis, Scale};
use super::drawing::{Anchor, Drawing, Point};
use super::frame::{Frame, header, notes};
use super::style::{GREY, GRID, INK, LABEL, LINE, MARGIN, SMALL, fit, paler, ramp, width};

/// Surfaces beside and below each other.
#[derive(Clone, Debug, Default)]
pub struct Surfaces {
    /// What it shows.
    pub title: String,
    /// Of what.
    pub subtitle: String,
    /// Two in a row.
    pub panels: Vec<Surface>,
    /// What to know beside that.
    pub note: String,
}

/// A surface.
#[derive(Clone, Debug, Default)]
pub struct Surface {
    /// What it is of.
    pub title: String,
    /// The first and the last token.
    pub tokens: (usize, usize),
    /// Magnitudes `[token][channel]`, all rows of one length.
    pub values: Vec<Vec<f64>>,
}

/// More surfaces than this are too many to look at.
const MAX_PANELS: usize = 24;
/// Ridges of a surface, and points of a ridge: as many as can be seen.
const MAX_RIDGES: usize = 64;
/// See there.
const MAX_POINTS: usize = 40;

impl Surfaces {
    /// Draws it.
    ///
    /// # Errors
    /// Nothing to draw, too much of it, or a number that cannot be drawn.
    pub fn draw(&self) -> Result<Drawing> {
        if self.panels.is_empty() || self.panels.len() > MAX_PANELS {
            bail!("expected 1 to {} layers, found {}", MAX_PANELS / 2, self.panels.len() / 2);
        }
        let mut drawing = Drawing::default();
        let top = header(&mut drawing, &self.title, &self.subtitle) + 4.0;
        let rows = self.panels.len().div_ceil(2);
        let all = Frame::below(top, 250.0 * rows as f64 + MARGIN * (rows - 1) as f64);
        for (i, surface) in self.panels.iter().enumerate() {
            surface.draw(&mut drawing, &all.cell((i % 2, i / 2), (2, rows), MARGIN))?;
        }
        drawing.height = notes(&mut drawing, all.bottom + 4.0, &self.note);
        Ok(drawing)
    }
}

/// Where a magnitude is: tokens go to the right, channels away from who looks.
struct View {
    /// Where the first token and the first channel lie.
    origin: Point,
    tokens: f64,
    channels: Point,
    height: f64,
}

impl View {
    /// Of shares of tokens, channels and magnitude.
    fn at(&self, token: f64, channel: f64, magnitude: f64) -> Point {
        let (x, y) = self.origin;
        let (right, up) = self.channels;
        (x + token * self.tokens + channel * right, y - channel * up - magnitude * self.height)
    }
}

impl Surface {
    fn draw(&self, drawing: &mut Drawing, outer: &Frame) -> Result<()> {
        let channels = self.values.first().map_or(0, Vec::len);
        if channels == 0 {
            bail!("{}: has no magnitudes", self.title);
        }
        Axis::new(self.values.iter().flatten().copied(), Scale::Linear)?;
        if self.values.iter().flatten().any(|value| *value < 0.0) {
            bail!("{}: expected magnitudes, found a number below 0", self.title);
        }
        let ridges = pooled(&self.values);
        let axis = Axis::new(ridges.iter().flatten().copied(), Scale::Linear)?;
        let height = 0.5 * (outer.height() - 3.0 * LINE);
        let ticks: Vec<_> = axis.vertical(height);
        let widest = ticks.iter().map(|(_, text)| width(SMALL, text)).fold(0.0, f64::max);
        let left = outer.left + LINE + widest + 10.0;
        let (room, bottom) = (outer.right - 30.0 - left, outer.bottom - 2.0 * LINE);
        let view = View {
            origin: (left, bottom),
            tokens: 0.72 * room,
            channels: (0.28 * room, bottom - outer.top - LINE - 6.0 - height),
            height,
        };
        self.floor(drawing, outer, &view, &ticks, channels);
        let means: Vec<f64> =
            ridges.iter().map(|ridge| ridge.iter().sum::<f64>() / ridge.len() as f64).collect();
        let most = means.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let last = (ridges.len() - 1).max(1) as f64;
        for (i, ridge) in ridges.iter().enumerate().rev() {
            let away = i as f64 / last;
            let step = |t: usize| t as f64 / (ridge.len() - 1).max(1) as f64;
            let top = |(t, value): (usize, &f64)| view.at(step(t), away, axis.place(*value));
            let line: Vec<Point> = match ridge[..] {
                // A single token is as wide as all of them.
                [only] => [0.0, 1.0].map(|t| view.at(t, away, axis.place(only))).to_vec(),
                _ => ridge.iter().enumerate().map(top).collect(),
            };
            let ground = [view.at(1.0, away, 0.0), view.at(0.0, away, 0.0)];
            // Not up to the end of the ramp, which is hard to see on paper.
            let color = ramp(0.85 * means[i] / most);
            drawing.polygon(line.iter().copied().chain(ground).collect(), paler(color));
            drawing.path(line, color, 1.0);
        }
        let corners = [(0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)];
        drawing.path(corners.map(|(t, c, m)| view.at(t, c, m)).to_vec(), INK, 1.0);
        Ok(())
    }

    /// The names of the axes, and the lines behind the ridges.
    fn floor(
        &self,
        drawing: &mut Drawing,
        outer: &Frame,
        view: &View,
        ticks: &[(f64, String)],
        channels: usize,
    ) {
        let left = view.origin.0;
        let title = fit(LABEL, &self.title, outer.right - left);
        drawing.text(title, (left, outer.top + LINE / 2.0), LABEL, INK, Anchor::Start);
        for (share, text) in ticks {
            drawing.path(
                vec![view.at(0.0, 0.0, *share), view.at(0.0, 1.0, *share), view.at(1.0, 1.0, *share)],
                GRID,
                1.0,
            );
            let (x, y) = view.at(0.0, 0.0, *share);
            drawing.text(text, (x - 7.0, y), SMALL, INK, Anchor::End);
        }
        drawing.text_upwards(
            "magnitude",
            (outer.left + LINE / 2.0, view.origin.1 - view.height / 2.0),
            SMALL,
            INK,
        );
        let y = view.origin.1 + 12.0;
        let (first, last) = (self.tokens.0.to_string(), self.tokens.1.to_string());
        drawing.text(&first, (left, y), SMALL, GREY, Anchor::Start);
        drawing.text(&last, (left + view.tokens, y), SMALL, GREY, Anchor::End);
        if width(SMALL, &first) + width(SMALL, &last) + width(SMALL, "token") + 20.0 < view.tokens {
            drawing.text("token", (left + view.tokens / 2.0, y), SMALL, INK, Anchor::Middle);
        }
        // Beside the edge that goes away.
        let beside = |share: f64| {
            let (x, y) = view.at(1.0, share, 0.0);
            (x + 8.0, y)
        };
        drawing.text("0", beside(0.0), SMALL, GREY, Anchor::Start);
        drawing.text("channel", beside(0.5), SMALL, INK, Anchor::Start);
        drawing.text((channels - 1).to_string(), beside(1.0), SMALL, GREY, Anchor::Start);
    }
}

/// The values by channel. Neighbouring tokens are averaged where there are more than points; of neighbouring channels, where there
/// are more than ridges, the one with the largest mean is taken, so that none that stands out is lost.
fn pooled(values: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let channels = values.first().map_or(0, Vec::len);
    let (wide, long) = (channels.div_ceil(MAX_RIDGES), values.len().div_ceil(MAX_POINTS));
    let mean = |rows: &[Vec<f64>], channel: usize| -> f64 {
        rows.iter().map(|row| row[channel] / rows.len() as f64).sum()
    };
    let ridge = |first: usize| -> Vec<f64> {
        let group = first..(first + wide).min(channels);
        let largest = group.max_by(|a, b| mean(values, *a).total_cmp(&mean(values, *b)));
        values.chunks(long).map(|rows| mean(rows, largest.unwrap_or(first))).collect()
    };
    (0..channels).step_by(wide).map(ridge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_keeps_what_stands_out() {
        let mut values = vec![vec![1.0; 200]; 300];
        values.iter_mut().for_each(|row| row[199] = 9.0);
        values[0][3] = 7.0;
        let ridges = pooled(&values);
        assert!(ridges.len() <= MAX_RIDGES && ridges[0].len() <= MAX_POINTS);
        assert!(ridges.last().unwrap().iter().all(|value| (value - 9.0).abs() < 1e-9));
        let long = 300_usize.div_ceil(MAX_POINTS) as f64;
        assert!((ridges[0][0] - (6.0 + long) / long).abs() < 1e-9 && ridges[0][1] == ridges[1][1]);
        assert_eq!(pooled(&values[..2]).len(), 50);
    }
}
