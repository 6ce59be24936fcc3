//! What stands around data: title, legend, axes, notes.

use super::axis::{Axis, Tick};
use super::drawing::{Anchor, Drawing, Point};
use super::style::{
    GREY, GRID, INK, LABEL, LINE, MARGIN, SMALL, TITLE, WIDTH, color, fit, place, round, width, wrap,
};

/// Most series that a legend tells apart.
pub const MAX_SERIES: usize = 28;

/// A rectangle.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Its left side.
    pub left: f64,
    /// Its top.
    pub top: f64,
    /// Its right side.
    pub right: f64,
    /// Its bottom.
    pub bottom: f64,
}

impl Frame {
    /// Where shares of its width, from the left, and of its height, from the bottom, are.
    pub fn at(&self, x: f64, y: f64) -> Point {
        (self.left + x * self.width(), self.bottom - y * self.height())
    }

    /// Its width.
    pub fn width(&self) -> f64 {
        self.right - self.left
    }

    /// Its height.
    pub fn height(&self) -> f64 {
        self.bottom - self.top
    }

    /// Cell `(column, row)`, from the top left, of a grid with `gap` between cells.
    pub fn cell(&self, (column, row): (usize, usize), (columns, rows): (usize, usize), gap: f64) -> Frame {
        let width = (self.width() - gap * (columns - 1) as f64) / columns as f64;
        let height = (self.height() - gap * (rows - 1) as f64) / rows as f64;
        let left = self.left + column as f64 * (width + gap);
        let top = self.top + row as f64 * (height + gap);
        Frame { left, top, right: left + width, bottom: top + height }
    }

    /// The room for data, with labels and the ticks of a vertical axis of that height on its left, and on all other sides what they
    /// need.
    pub fn inner(&self, title: &str, vertical: &dyn Fn(f64) -> Vec<Tick>) -> Frame {
        let top = self.top + if title.is_empty() { 8.0 } else { LINE + 6.0 };
        let ticks = vertical(self.bottom - 2.0 * LINE - 6.0 - top);
        let widest = ticks.iter().map(|(_, text)| width(SMALL, text)).fold(0.0, f64::max);
        Frame {
            left: self.left + LINE + widest + 10.0,
            top,
            right: self.right - 20.0,
            bottom: self.bottom - 2.0 * LINE - 6.0,
        }
    }

    /// The part of the picture below `top`, `height` high.
    pub fn below(top: f64, height: f64) -> Frame {
        Frame { left: MARGIN, top, right: WIDTH - MARGIN, bottom: top + height }
    }
}

/// Title and subtitle; the height that they take.
pub fn header(drawing: &mut Drawing, title: &str, subtitle: &str) -> f64 {
    let most = WIDTH - 2.0 * MARGIN;
    drawing.text(fit(TITLE, title, most), (MARGIN, 24.0), TITLE, INK, Anchor::Start);
    let lines = wrap(SMALL, subtitle, most);
    for (line, text) in lines.iter().enumerate() {
        drawing.text(text, (MARGIN, 46.0 + LINE * line as f64), SMALL, GREY, Anchor::Start);
    }
    44.0 + LINE * lines.len() as f64
}

/// The series in rows, above the data; the height with what is above.
pub fn legend(drawing: &mut Drawing, top: f64, names: &[&str]) -> f64 {
    const SWATCH: f64 = 32.0;
    let (mut x, mut y) = (MARGIN, top + LINE / 2.0 + 2.0);
    for (series, name) in names.iter().enumerate() {
        let name = fit(LABEL, name, WIDTH - 2.0 * MARGIN - SWATCH);
        let next = x + SWATCH + width(LABEL, &name);
        if next > WIDTH - MARGIN && x > MARGIN {
            (x, y) = (MARGIN, y + LINE + 2.0);
        }
        drawing.line((x, y), (x + 24.0, y), color(series), 2.0);
        mark(drawing, (x + 12.0, y), series);
        drawing.text(&name, (x + SWATCH, y), LABEL, INK, Anchor::Start);
        x += SWATCH + width(LABEL, &name) + 18.0;
    }
    if names.is_empty() { top } else { y + LINE / 2.0 + 8.0 }
}

/// Text below the data; the height with what is above.
pub fn notes(drawing: &mut Drawing, top: f64, text: &str) -> f64 {
    let lines = wrap(SMALL, text, WIDTH - 2.0 * MARGIN);
    for (line, text) in lines.iter().enumerate() {
        drawing.text(text, (MARGIN, top + LINE * (line as f64 + 0.5)), SMALL, GREY, Anchor::Start);
    }
    top + LINE * lines.len() as f64 + 8.0
}

/// The mark of a series at a point of data.
pub fn mark(drawing: &mut Drawing, (x, y): Point, series: usize) {
    const R: f64 = 4.0;
    let color = color(series);
    // A colour that comes again has another mark.
    match (place(series) + round(series)) % 4 {
        0 => drawing.circle((x, y), R, color, None),
        1 => drawing.polygon(vec![(x - R, y - R), (x + R, y - R), (x + R, y + R), (x - R, y + R)], color),
        2 => drawing.polygon(vec![(x, y - R - 1.0), (x + R + 1.0, y + R), (x - R - 1.0, y + R)], color),
        _ => drawing
            .polygon(vec![(x, y - R - 1.5), (x + R + 1.5, y), (x, y + R + 1.5), (x - R - 1.5, y)], color),
    }
}

/// Names of the axes and of what is between them.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// Above.
    pub title: &'a str,
    /// Under the horizontal axis.
    pub x: &'a str,
    /// Beside the vertical axis.
    pub y: &'a str,
}

/// Axes of numbers around `inner`, which is a part of `outer`.
pub fn axes(drawing: &mut Drawing, outer: &Frame, inner: &Frame, labels: Labels<'_>, (x, y): (&Axis, &Axis)) {
    let horizontal: Vec<Tick> = x.horizontal(inner.width());
    for (share, text) in &horizontal {
        let (from, to) = (inner.at(*share, 0.0), inner.at(*share, 1.0));
        drawing.line(from, to, GRID, 1.0);
        drawing.text(text, (from.0, from.1 + 12.0), SMALL, INK, Anchor::Middle);
    }
    for (share, text) in &y.vertical(inner.height()) {
        let (from, to) = (inner.at(0.0, *share), inner.at(1.0, *share));
        drawing.line(from, to, GRID, 1.0);
        drawing.text(text, (from.0 - 7.0, from.1), SMALL, INK, Anchor::End);
    }
    drawing.line(inner.at(0.0, 0.0), inner.at(1.0, 0.0), INK, 1.0);
    drawing.line(inner.at(0.0, 0.0), inner.at(0.0, 1.0), INK, 1.0);
    names(drawing, outer, inner, labels);
}

/// Title and names of the axes around `inner`, which is a part of `outer`.
pub fn names(drawing: &mut Drawing, outer: &Frame, inner: &Frame, labels: Labels<'_>) {
    if !labels.title.is_empty() {
        let title = fit(LABEL, labels.title, outer.right - inner.left);
        drawing.text(title, (inner.left, outer.top + LINE / 2.0), LABEL, INK, Anchor::Start);
    }
    let x = fit(LABEL, labels.x, outer.width());
    let half = width(LABEL, &x) / 2.0;
    let middle = (inner.left + inner.width() / 2.0).clamp(outer.left + half, outer.right - half);
    drawing.text(x, (middle, outer.bottom - LINE / 2.0), LABEL, INK, Anchor::Middle);
    let y = fit(LABEL, labels.y, inner.height());
    drawing.text_upwards(y, (outer.left + LINE / 2.0, inner.top + inner.height() / 2.0), LABEL, INK);
}
