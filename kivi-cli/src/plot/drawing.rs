//! A picture as a list of shapes in layout pixels, and its way into a file.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::backend::DrawingBackend;
use plotters::coord::Shift;
use plotters::element::{Circle, PathElement, Polygon, Rectangle};
use plotters::prelude::{
    BitMapBackend, DrawingArea, FontTransform, IntoDrawingArea, IntoFont, RGBColor, SVGBackend,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, TextStyle};

use super::style::{FAMILY, FONT_LINE, PAPER, WIDTH, load_font};
use crate::format;

/// Scale and offset of text, by which capitals are of one size and around their point: the library writes the height of a line
/// divided by 1.24 as the size of a font into an SVG, and puts the middle of small letters there.
const SVG_TEXT: (f64, f64) = (1.24 / FONT_LINE, 0.09);
/// In a PNG it puts the middle of a line there.
const PNG_TEXT: (f64, f64) = (1.0, 0.24);

/// A point.
pub type Point = (f64, f64);

/// Which part of a text is at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// A line of text; its middle line goes through `at`.
#[derive(Clone, Debug)]
pub struct Text {
    /// What it says.
    pub text: String,
    /// Where.
    pub at: Point,
    /// The size.
    pub size: f64,
    /// The colour.
    pub color: RGBColor,
    /// What is at the point.
    pub anchor: Anchor,
    /// Whether it is read from below.
    pub upwards: bool,
}

/// Something to draw.
#[derive(Clone, Debug)]
enum Shape {
    Rect(Point, Point, RGBColor),
    Path(Vec<Point>, RGBColor, f64),
    Polygon(Vec<Point>, RGBColor),
    Circle(Point, f64, RGBColor, Option<f64>),
    Text(Text),
}

/// A picture of [`WIDTH`].
#[derive(Clone, Debug, Default)]
pub struct Drawing {
    /// Its height.
    pub height: f64,
    shapes: Vec<Shape>,
}

impl Drawing {
    /// A filled rectangle.
    pub fn rect(&mut self, from: Point, to: Point, color: RGBColor) {
        self.shapes.push(Shape::Rect(from, to, color));
    }

    /// A line.
    pub fn line(&mut self, from: Point, to: Point, color: RGBColor, width: f64) {
        self.path(vec![from, to], color, width);
    }

    /// A line through points.
    pub fn path(&mut self, points: Vec<Point>, color: RGBColor, width: f64) {
        self.shapes.push(Shape::Path(points, color, width));
    }

    /// A filled polygon.
    pub fn polygon(&mut self, points: Vec<Point>, color: RGBColor) {
        self.shapes.push(Shape::Polygon(points, color));
    }

    /// A circle, filled or a ring of this width.
    pub fn circle(&mut self, center: Point, radius: f64, color: RGBColor, ring: Option<f64>) {
        self.shapes.push(Shape::Circle(center, radius, color, ring));
    }

    /// Text that is read from the left.
    pub fn text(&mut self, text: impl Into<String>, at: Point, size: f64, color: RGBColor, anchor: Anchor) {
        self.push(Text { text: text.into(), at, size, color, anchor, upwards: false });
    }

    /// Text that is read from below, around its point.
    pub fn text_upwards(&mut self, text: impl Into<String>, at: Point, size: f64, color: RGBColor) {
        self.push(Text { text: text.into(), at, size, color, anchor: Anchor::Middle, upwards: true });
    }

    fn push(&mut self, text: Text) {
        if !text.text.is_empty() {
            self.shapes.push(Shape::Text(text));
        }
    }

    /// Writes a file, whole or not at all, in the format that its name says.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path, format: Format) -> Result<()> {
        load_font()?;
        let name = || format!("{}: cannot be written", format::path(path));
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // The library goes by the name of a file, too.
        let mut file = tempfile::Builder::new();
        file.suffix(format.suffix());
        // As any file, less what the umask says; a temporary one would be for its owner alone.
        #[cfg(unix)]
        file.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = file.tempfile_in(dir).with_context(name)?;
        match format {
            Format::Svg => std::fs::write(file.path(), self.svg()?).with_context(name)?,
            Format::Png => {
                self.on(BitMapBackend::new(file.path(), self.size(2.0)), 2.0, PNG_TEXT).with_context(name)?
            }
        }
        file.persist(path).with_context(name).map(drop)
    }

    fn svg(&self) -> Result<String> {
        let mut out = String::new();
        self.on(SVGBackend::with_string(&mut out, self.size(1.0)), 1.0, SVG_TEXT)?;
        Ok(out)
    }

    fn size(&self, scale: f64) -> (u32, u32) {
        ((WIDTH * scale) as u32, (self.height * scale).ceil() as u32)
    }

    /// Draws all shapes, `scale` pixels a pixel of the layout. Text is larger by `text.0`, and lower by `text.1` of its size.
    fn on<DB: DrawingBackend>(&self, backend: DB, scale: f64, text: (f64, f64)) -> Result<()> {
        let area = backend.into_drawing_area();
        let failed = |error: String| anyhow!("drawing failed: {error}");
        area.fill(&PAPER).map_err(|error| failed(error.to_string()))?;
        let brush = Brush { area: &area, scale, text };
        self.shapes.iter().try_for_each(|shape| brush.draw(shape)).map_err(failed)?;
        area.present().map_err(|error| failed(error.to_string()))
    }
}

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines and text.
    Svg,
    /// Pixels.
    Png,
}

impl Format {
    /// The format of files of this name.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        [Self::Svg, Self::Png].into_iter().find(|format| format.suffix()[1..] == extension)
    }

    /// How its files end.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Svg => ".svg",
            Self::Png => ".png",
        }
    }
}

/// Draws shapes on a backend of the library.
struct Brush<'a, DB: DrawingBackend> {
    area: &'a DrawingArea<DB, Shift>,
    scale: f64,
    text: (f64, f64),
}

impl<DB: DrawingBackend> Brush<'_, DB> {
    fn at(&self, (x, y): Point) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    fn all(&self, points: &[Point]) -> Vec<(i32, i32)> {
        points.iter().map(|point| self.at(*point)).collect()
    }

    fn stroke(&self, width: f64) -> u32 {
        ((width * self.scale).round() as u32).max(1)
    }

    fn draw(&self, shape: &Shape) -> Result<(), String> {
        let area = self.area;
        match shape {
            Shape::Rect(from, to, color) => {
                area.draw(&Rectangle::new([self.at(*from), self.at(*to)], color.filled()))
            }
            Shape::Path(points, color, width) => {
                area.draw(&PathElement::new(self.all(points), color.stroke_width(self.stroke(*width))))
            }
            Shape::Polygon(points, color) => area.draw(&Polygon::new(self.all(points), color)),
            Shape::Circle(center, radius, color, ring) => {
                let style = ring.map_or(color.filled(), |width| color.stroke_width(self.stroke(width)));
                area.draw(&Circle::new(self.at(*center), (radius * self.scale).round() as i32, style))
            }
            Shape::Text(text) => {
                let (down, (x, y)) = (self.text.1 * text.size, text.at);
                let at = if text.upwards { (x + down, y) } else { (x, y + down) };
                area.draw_text(&text.text, &self.style(text), self.at(at))
            }
        }
        .map_err(|error| error.to_string())
    }

    fn style<'a>(&self, text: &'a Text) -> TextStyle<'a> {
        let anchor = match text.anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let font = (FAMILY, text.size * FONT_LINE * self.scale * self.text.0).into_font();
        let font = if text.upwards { font.transform(FontTransform::Rotate270) } else { font };
        TextStyle::from(font).color(&text.color).pos(Pos::new(anchor, VPos::Center))
    }
}

#[cfg(test)]
impl Text {
    /// The corners of its box.
    pub fn bounds(&self) -> (Point, Point) {
        let (length, height) = (super::style::width(self.size, &self.text), self.size);
        let before = match self.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => length / 2.0,
            Anchor::End => length,
        };
        let (x, y) = self.at;
        if self.upwards {
            return ((x - height / 2.0, y + before - length), (x + height / 2.0, y + before));
        }
        ((x - before, y - height / 2.0), (x - before + length, y + height / 2.0))
    }
}

#[cfg(test)]
impl Drawing {
    /// All text.
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        self.shapes.iter().filter_map(|shape| match shape {
            Shape::Text(text) => Some(text),
            _ => None,
        })
    }

    /// What is wrong with its text: outside of the picture, or over other text.
    pub fn faults(&self) -> Vec<String> {
        let texts: Vec<&Text> = self.texts().collect();
        let mut out = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let ((x0, y0), (x1, y1)) = text.bounds();
            if x0 < 0.0 || y0 < 0.0 || x1 > WIDTH || y1 > self.height {
                out.push(format!("{:?} is outside: {:?}", text.text, text.bounds()));
            }
            for other in &texts[..i] {
                let ((a0, b0), (a1, b1)) = other.bounds();
                if x0 < a1 && a0 < x1 && y0 < b1 && b0 < y1 {
                    out.push(format!("{:?} and {:?} overlap", other.text, text.text));
                }
            }
        }
        out
    }
}
