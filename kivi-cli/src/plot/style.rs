//! What all pictures share: sizes, colours, the font, and how text is measured and cut. Sizes are pixels of the layout.

use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use plotters::prelude::{FontStyle, IntoFont, RGBColor, ViridisRGB};
use plotters::style::register_font;

/// Width of a picture: what a README shows.
pub const WIDTH: f64 = 800.0;
/// Space around it.
pub const MARGIN: f64 = 16.0;
/// Size of the title.
pub const TITLE: f64 = 17.0;
/// Size of labels.
pub const LABEL: f64 = 13.0;
/// Size of what stands at ticks.
pub const SMALL: f64 = 12.0;
/// Height of a line of text.
pub const LINE: f64 = 18.0;

/// Text and axes.
pub const INK: RGBColor = RGBColor(40, 40, 40);
/// Less important text.
pub const GREY: RGBColor = RGBColor(95, 95, 95);
/// Lines at ticks.
pub const GRID: RGBColor = RGBColor(225, 225, 225);
/// What is behind all.
pub const PAPER: RGBColor = RGBColor(255, 255, 255);

/// The colours of Okabe and Ito that are dark enough on white: those who see fewer colours tell them apart.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// The font, as an SVG names it: those after the first are nearly as wide.
pub const FAMILY: &str = "DejaVu Sans,Verdana,sans-serif";
/// Height of a line of DejaVu Sans in ems, which the library takes for the size of a font.
pub const FONT_LINE: f64 = 1.164;

/// Makes the font known to the library.
///
/// # Errors
/// The font is damaged.
pub fn load_font() -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    let load = || register_font(FAMILY, FontStyle::Normal, dejavu::sans::regular()).is_ok();
    LOADED.get_or_init(load).then_some(()).ok_or_else(|| anyhow!("the font of pictures cannot be read"))
}

/// The colour of a series.
pub fn color(series: usize) -> RGBColor {
    PALETTE[place(series)]
}

/// The place of its colour.
pub fn place(series: usize) -> usize {
    series % PALETTE.len()
}

/// How often all colours were used before this series: its marks differ.
pub fn round(series: usize) -> usize {
    series / PALETTE.len()
}

/// The colour of a share from 0 (dark) to 1 (light), in even steps.
pub fn ramp(share: f64) -> RGBColor {
    ViridisRGB::get_color(share.clamp(0.0, 1.0))
}

/// The colour with much white.
pub fn paler(RGBColor(r, g, b): RGBColor) -> RGBColor {
    let [r, g, b] = [r, g, b].map(|x| 255 - (255 - x) / 3);
    RGBColor(r, g, b)
}

/// Whether white text reads better on this colour than black text.
pub fn is_dark(RGBColor(r, g, b): RGBColor) -> bool {
    0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b) < 140.0
}

/// The width of text of this size.
pub fn width(size: f64, text: &str) -> f64 {
    // Measured large, since the library counts whole pixels.
    let font = (FAMILY, 100.0 * FONT_LINE).into_font();
    let hundred = font.box_size(text).map_or(60.0 * text.chars().count() as f64, |(width, _)| width.into());
    hundred * size / 100.0
}

/// The text, without its middle where it is wider than this.
pub fn fit(size: f64, text: &str, most: f64) -> String {
    let chars: Vec<char> = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cut = |keep: usize| -> String {
        let head = keep.div_ceil(2);
        let tail = &chars[chars.len() - (keep - head)..];
        chars[..head].iter().chain(['…'].iter()).chain(tail).collect()
    };
    let (mut low, mut high) = (0, chars.len());
    // Nothing that fits has more characters than this: no letter is narrower than a tenth of its size.
    if high as f64 <= 10.0 * most / size {
        let whole: String = chars.iter().collect();
        if width(size, &whole) <= most {
            return whole;
        }
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if width(size, &cut(middle)) <= most { low = middle } else { high = middle }
    }
    cut(low)
}

/// The text in lines of at most this width, cut between words.
pub fn wrap(size: f64, text: &str, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(size, &format!("{line} {word}")) <= most => *line += &format!(" {word}"),
            _ => lines.push(fit(size, word, most)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_to_its_width() {
        load_font().unwrap();
        assert_eq!(fit(12.0, "short", 200.0), "short");
        for text in
            ["meta-llama/Llama-2-7b-chat-hf-and-much-more".repeat(9), "i".repeat(100_000), "界".repeat(50)]
        {
            for most in [100.0, 20.0] {
                let cut = fit(12.0, &text, most);
                assert!(cut.contains('…') && width(12.0, &cut) <= most, "{cut}");
                assert!(width(12.0, &cut) > 0.5 * most || most < 50.0, "{cut}");
            }
        }
        assert_eq!(fit(12.0, "two\nlines", 200.0), "two lines");
        let lines = wrap(12.0, &"many words ".repeat(40), 300.0);
        assert!(lines.len() > 5 && lines.iter().all(|line| width(12.0, line) <= 300.0));
        assert_eq!(lines.join(" "), "many words ".repeat(40).trim());
    }
}
