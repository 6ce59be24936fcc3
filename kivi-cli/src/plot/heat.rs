//! Grids of shares as colours.

use anyhow::{Result, bail};

use super::drawing::{Anchor, Drawing};
use super::frame::{Frame, Labels, header, names};
use super::style::{GREY, INK, LINE, MARGIN, PAPER, SMALL, WIDTH, is_dark, ramp, width};

/// Panels with the same axes.
#[derive(Clone, Debug, Default)]
pub struct Heat {
    /// What it shows.
    pub title: String,
    /// Of what.
    pub subtitle: String,
    /// The horizontal axis, with its unit.
    pub x: String,
    /// The vertical axis, with its unit.
    pub y: String,
    /// Beside and below each other.
    pub panels: Vec<Grid>,
}

/// One grid.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    /// What it is of.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Names of the rows, from above.
    pub rows: Vec<String>,
    /// Right answers and prompts, row after row; none where nothing was asked.
    pub cells: Vec<Option<(f64, f64)>>,
}

/// More columns, rows or panels than this are too many to look at.
const MAX: (usize, usize) = (200, 12);

impl Heat {
    /// Draws it.
    ///
    /// # Errors
    /// Nothing to draw, too much of it, or more right answers than prompts.
    pub fn draw(&self) -> Result<Drawing> {
        if self.panels.is_empty() || self.panels.len() > MAX.1 {
            bail!("expected 1 to {} results, found {}", MAX.1, self.panels.len());
        }
        self.panels.iter().try_for_each(Grid::check)?;
        let mut drawing = Drawing::default();
        let top = header(&mut drawing, &self.title, &self.subtitle);
        let top = scale(&mut drawing, top);
        let columns = self.panels.len().min(2);
        let rows = self.panels.len().div_ceil(columns);
        let most = self.panels.iter().map(|grid| grid.rows.len()).max().unwrap_or(1);
        let height = (26.0 * most as f64).clamp(150.0, 420.0) + 3.0 * LINE + 16.0;
        let all = Frame::below(top, height * rows as f64 + MARGIN * (rows - 1) as f64);
        for (i, grid) in self.panels.iter().enumerate() {
            let outer = all.cell((i % columns, i / columns), (columns, rows), MARGIN);
            grid.draw(&mut drawing, &outer, (&self.x, &self.y));
        }
        drawing.height = all.bottom + 12.0;
        Ok(drawing)
    }
}

/// What colours mean; the height with what is above.
fn scale(drawing: &mut Drawing, top: f64) -> f64 {
    let y = top + LINE / 2.0 + 2.0;
    let text = "right answers";
    drawing.text(text, (MARGIN, y), SMALL, INK, Anchor::Start);
    let from = MARGIN + width(SMALL, text) + 14.0 + width(SMALL, "0 %");
    drawing.text("0 %", (from - 6.0, y), SMALL, INK, Anchor::End);
    for i in 0..50 {
        let x = from + 4.0 * f64::from(i);
        drawing.rect((x, y - 6.0), (x + 4.0, y + 6.0), ramp(f64::from(i) / 49.0));
    }
    drawing.text("100 %", (from + 206.0, y), SMALL, INK, Anchor::Start);
    y + LINE / 2.0 + 8.0
}

impl Grid {
    fn check(&self) -> Result<()> {
        let (columns, rows) = (self.columns.len(), self.rows.len());
        if columns == 0 || rows == 0 || columns > MAX.0 || rows > MAX.0 {
            bail!("expected 1 to {} lengths and depths, found {columns} and {rows}", MAX.0);
        }
        let wrong = |(right, of): &(f64, f64)| !(*of > 0.0 && (0.0..=*of).contains(right));
        if let Some((right, of)) = self.cells.iter().flatten().find(|cell| wrong(cell)) {
            bail!("expected right answers and more prompts than those, found {right} and {of}");
        }
        Ok(())
    }

    fn draw(&self, drawing: &mut Drawing, outer: &Frame, (x, y): (&str, &str)) {
        let (columns, rows) = (self.columns.len(), self.rows.len());
        let ticks = |_| self.rows.iter().map(|name| (0.0, name.clone())).collect();
        let inner = outer.inner(&self.title, &ticks);
        for (i, cell) in self.cells.iter().enumerate() {
            let Some((right, of)) = cell else { continue };
            let place = inner.cell((i % columns, i / columns), (columns, rows), 0.0);
            let fill = ramp(right / of);
            // A line of paper between cells, where they are large enough for it.
            let gap = if place.width() > 12.0 && place.height() > 12.0 { 1.0 } else { 0.0 };
            drawing.rect((place.left, place.top), (place.right - gap, place.bottom - gap), fill);
            let text = format!("{right}/{of}");
            if width(SMALL, &text) + 8.0 <= place.width() && place.height() >= SMALL + 4.0 {
                let ink = if is_dark(fill) { PAPER } else { INK };
                let middle = ((place.left + place.right) / 2.0, (place.top + place.bottom) / 2.0);
                drawing.text(text, middle, SMALL, ink, Anchor::Middle);
            }
        }
        self.tick_names(drawing, &inner);
        names(drawing, outer, &inner, Labels { title: &self.title, x, y });
        debug_assert!(outer.right <= WIDTH);
    }

    /// Names of columns and rows, as many as have room.
    fn tick_names(&self, drawing: &mut Drawing, inner: &Frame) {
        let (columns, rows) = (self.columns.len(), self.rows.len());
        let widest = self.columns.iter().map(|name| width(SMALL, name)).fold(0.0, f64::max) + 10.0;
        let every = (widest / (inner.width() / columns as f64)).ceil().max(1.0) as usize;
        for (i, name) in self.columns.iter().enumerate().step_by(every) {
            let x = inner.left + (i as f64 + 0.5) * inner.width() / columns as f64;
            let half = width(SMALL, name) / 2.0;
            let x = x.min(inner.right + 20.0 - half);
            drawing.text(name, (x, inner.bottom + 11.0), SMALL, INK, Anchor::Middle);
        }
        let every = ((SMALL + 3.0) / (inner.height() / rows as f64)).ceil().max(1.0) as usize;
        for (i, name) in self.rows.iter().enumerate().step_by(every) {
            let y = inner.top + (i as f64 + 0.5) * inner.height() / rows as f64;
            drawing.text(name, (inner.left - 7.0, y), SMALL, GREY, Anchor::End);
        }
    }
}
