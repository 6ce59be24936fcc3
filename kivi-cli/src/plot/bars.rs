//! Bars beside each other's names.

use anyhow::{Context, Result, bail};

use super::axis::{Axis, Scale};
use super::drawing::{Anchor, Drawing};
use super::frame::{Frame, Labels, header, names, notes};
use super::style::{GREY, GRID, INK, LINE, MARGIN, SMALL, WIDTH, color, fit, width};

/// One bar a setting.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// Of what.
    pub subtitle: String,
    /// What the bars measure, with its unit.
    pub axis: String,
    /// From above.
    pub bars: Vec<Bar>,
    /// What to know beside that.
    pub note: String,
}

/// A bar.
#[derive(Clone, Debug, Default)]
pub struct Bar {
    /// What it is of.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// The standard error of that.
    pub error: f64,
    /// What stands beside it.
    pub text: String,
}

/// More bars than this are too many to look at.
const MAX_BARS: usize = 200;
/// Height of a row.
const ROW: f64 = 24.0;

impl Bars {
    /// Draws it.
    ///
    /// # Errors
    /// Nothing to draw, too much of it, or a number that cannot be drawn.
    pub fn draw(&self) -> Result<Drawing> {
        if self.bars.is_empty() || self.bars.len() > MAX_BARS {
            bail!("expected 1 to {MAX_BARS} settings, found {}", self.bars.len());
        }
        let ends = self.bars.iter().flat_map(|bar| [bar.value, bar.value + bar.error, bar.value - bar.error]);
        let axis = Axis::new(ends, Scale::Linear).with_context(|| self.axis.clone())?;
        let mut drawing = Drawing::default();
        let top = header(&mut drawing, &self.title, &self.subtitle);
        let outer = Frame::below(top, ROW * self.bars.len() as f64 + 2.0 * LINE + 22.0);
        let widest = |text: &dyn Fn(&Bar) -> &str| {
            self.bars.iter().map(|bar| width(SMALL, text(bar))).fold(0.0, f64::max)
        };
        let (name, text) = (widest(&|bar| &bar.name).min(320.0), widest(&|bar| &bar.text).min(140.0));
        let inner = Frame {
            left: MARGIN + name + 10.0,
            top: outer.top + 8.0,
            right: WIDTH - MARGIN - text - 12.0,
            bottom: outer.bottom - 2.0 * LINE - 6.0,
        };
        for (share, text) in axis.horizontal(inner.width()) {
            let (from, to) = (inner.at(share, 0.0), inner.at(share, 1.0));
            drawing.line(from, to, GRID, 1.0);
            drawing.text(text, (from.0, from.1 + 12.0), SMALL, INK, Anchor::Middle);
        }
        for (i, bar) in self.bars.iter().enumerate() {
            let row = inner.cell((0, i), (1, self.bars.len()), 0.0);
            bar.draw(&mut drawing, &row, &axis, (name, text));
        }
        let zero = axis.place(0.0);
        drawing.line(inner.at(zero, 0.0), inner.at(zero, 1.0), INK, 1.0);
        names(&mut drawing, &outer, &inner, Labels { title: "", x: &self.axis, y: "" });
        drawing.height = notes(&mut drawing, outer.bottom + 4.0, &self.note);
        Ok(drawing)
    }
}

impl Bar {
    fn draw(&self, drawing: &mut Drawing, row: &Frame, axis: &Axis, (name, text): (f64, f64)) {
        let middle = row.top + row.height() / 2.0;
        let x = |value: f64| row.at(axis.place(value), 0.0).0;
        let (from, to) = (x(0.0).min(x(self.value)), x(0.0).max(x(self.value)));
        drawing.rect((from, row.top + 4.0), (to, row.bottom - 4.0), color(1));
        if self.error > 0.0 {
            let (low, high) = (x(self.value - self.error), x(self.value + self.error));
            drawing.line((low, middle), (high, middle), INK, 1.0);
            for end in [low, high] {
                drawing.line((end, middle - 4.0), (end, middle + 4.0), INK, 1.0);
            }
        }
        drawing.text(fit(SMALL, &self.name, name), (row.left - 8.0, middle), SMALL, INK, Anchor::End);
        drawing.text(fit(SMALL, &self.text, text), (row.right + 8.0, middle), SMALL, GREY, Anchor::Start);
    }
}
