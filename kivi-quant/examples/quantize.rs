//! The format alone: quantizes keys and values of one head into a page and says what that costs.
//!
//! ```sh
//! cargo run --release -p kivi-quant --example quantize
//! ```

use kivi_quant::{Bits, CacheBytes, ConfigError, GroupSize, KiviConfig, PageLayout, Side, page};

const HEAD_DIM: usize = 64;
const TOKENS: usize = 128;

/// Numbers like those of a model: a few channels are much larger than the others.
fn rows(seed: f32) -> Vec<f32> {
    let element = |i: usize| {
        let outlier = if i % HEAD_DIM % 21 == 3 { 8.0 } else { 1.0 };
        outlier * ((i as f32 * 0.37 + seed).sin() + (i as f32 * 0.011 * seed).cos())
    };
    (0..TOKENS * HEAD_DIM).map(element).collect()
}

fn main() -> Result<(), ConfigError> {
    let (keys, values) = (rows(1.0), rows(2.0));
    println!("bits   error of keys   error of values   bytes of a page   bits an element");
    for bits in [Bits::B2, Bits::B4, Bits::B8] {
        let config = KiviConfig::new(bits, bits, GroupSize::G32, 128)?;
        let layout = PageLayout::new(config, HEAD_DIM)?;
        let mut words = vec![0; layout.page_words()];
        // Keys a channel at a time, 32 tokens to a scale; values a token at a time, 32 channels to a scale.
        for (group, rows) in keys.chunks_exact(32 * HEAD_DIM).enumerate() {
            page::pack_keys(&layout, &mut words, 32 * group, rows, 0);
        }
        for (token, row) in values.chunks_exact(HEAD_DIM).enumerate() {
            page::pack_value(&layout, &mut words, token, row);
        }
        let error = |side, rows: &[f32]| {
            let mut row = [0.0; HEAD_DIM];
            let of_token = |(token, exact): (usize, &[f32])| -> f32 {
                page::read_row(&layout, side, &words, token, &mut row);
                row.iter().zip(exact).map(|(x, y)| (x - y).powi(2)).sum()
            };
            let sum: f32 = rows.chunks_exact(HEAD_DIM).enumerate().map(of_token).sum();
            (sum / rows.len() as f32).sqrt()
        };
        println!(
            "{bits:>4}   {:>13.4}   {:>15.4}   {:>15}   {:>15.2}",
            error(Side::Key, &keys),
            error(Side::Value, &values),
            layout.page_bytes(),
            CacheBytes::of_head(&layout, 1 << 20).bits_per_element(),
        );
    }
    Ok(())
}
