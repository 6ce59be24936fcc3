//! Lines over axes of numbers.

use anyhow::{Context, Result, bail};

use super::axis::{Axis, Scale};
use super::drawing::{Drawing, Point};
use super::frame::{Frame, Labels, MAX_SERIES, axes, header, legend, mark, notes};
use super::style::{INK, MARGIN, WIDTH, color};

/// Panels with the same series.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// What it shows.
    pub title: String,
    /// Of what.
    pub subtitle: String,
    /// Beside and below each other.
    pub panels: Vec<Panel>,
    /// What to know beside that.
    pub note: String,
}

/// One pair of axes.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What it shows, where that is not all.
    pub title: String,
    /// The horizontal axis, with its unit.
    pub x: (String, Scale),
    /// The vertical axis, with its unit.
    pub y: (String, Scale),
    /// The lines.
    pub series: Vec<Series>,
}

/// A line.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Its name: the same in all panels.
    pub name: String,
    /// Its points.
    pub points: Vec<Point>,
    /// A point to mark.
    pub ring: Option<Point>,
}

/// Points of a line that still have marks.
const MARKED: usize = 40;
/// More panels than this are too many to look at.
const MAX_PANELS: usize = 12;

impl Lines {
    /// Draws it.
    ///
    /// # Errors
    /// Nothing to draw, too much of it, or a number that cannot be drawn.
    pub fn draw(&self) -> Result<Drawing> {
        let names = self.names();
        if names.is_empty() {
            bail!("has nothing to draw");
        }
        if names.len() > MAX_SERIES || self.panels.len() > MAX_PANELS {
            bail!(
                "expected at most {MAX_SERIES} lines in {MAX_PANELS} panels, found {} in {}; plot a part",
                names.len(),
                self.panels.len()
            );
        }
        let mut drawing = Drawing::default();
        let top = header(&mut drawing, &self.title, &self.subtitle);
        let top = legend(&mut drawing, top, &names);
        let columns = self.panels.len().min(2);
        let rows = self.panels.len().div_ceil(columns);
        let height = rows as f64 * if columns == 1 { 360.0 } else { 310.0 } + (rows - 1) as f64 * MARGIN;
        let all = Frame::below(top, height);
        for (i, panel) in self.panels.iter().enumerate() {
            let cell = all.cell((i % columns, i / columns), (columns, rows), MARGIN);
            panel.draw(&mut drawing, &cell, &names).with_context(|| panel.y.0.clone())?;
        }
        drawing.height = notes(&mut drawing, all.bottom + 4.0, &self.note);
        debug_assert!(all.right <= WIDTH);
        Ok(drawing)
    }

    /// The names of all lines with points, each once.
    fn names(&self) -> Vec<&str> {
        let mut out: Vec<&str> = Vec::new();
        for series in self.panels.iter().flat_map(|panel| &panel.series).filter(|s| !s.points.is_empty()) {
            if !out.contains(&series.name.as_str()) {
                out.push(&series.name);
            }
        }
        out
    }
}

impl Panel {
    fn draw(&self, drawing: &mut Drawing, outer: &Frame, names: &[&str]) -> Result<()> {
        let points = || self.series.iter().flat_map(|series| series.points.iter().copied());
        let x = Axis::new(points().map(|point| point.0), self.x.1)?;
        // What is not above zero has no place among powers of ten.
        let positive = || points().map(|point| point.1).filter(|y| *y > 0.0);
        let y = match self.y.1 {
            Scale::Decades if Axis::new(positive(), self.y.1)?.is_logarithmic() => {
                Axis::new(positive(), self.y.1)?
            }
            _ => Axis::new(points().map(|point| point.1), Scale::Linear)?,
        };
        let inner = outer.inner(&self.title, &|height| y.vertical(height));
        axes(drawing, outer, &inner, Labels { title: &self.title, x: &self.x.0, y: &self.y.0 }, (&x, &y));
        let place = |point: &Point| inner.at(x.place(point.0), y.place(point.1));
        for series in &self.series {
            let Some(number) = names.iter().position(|name| *name == series.name) else { continue };
            let shown = series.points.iter().filter(|point| !y.is_logarithmic() || point.1 > 0.0);
            let mut places: Vec<Point> = shown.map(place).collect();
            places.sort_by(|a, b| a.0.total_cmp(&b.0));
            if places.len() <= MARKED {
                places.iter().for_each(|at| mark(drawing, *at, number));
            }
            if let Some(at) = series.ring.as_ref().map(place) {
                drawing.line(at, (at.0, inner.bottom), color(number), 1.0);
                drawing.circle(at, 8.0, INK, Some(2.0));
            }
            drawing.path(places, color(number), 2.0);
        }
        Ok(())
    }
}
