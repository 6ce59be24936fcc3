//! How large keys and values are, channel by channel, in a cache that is not quantized.

use anyhow::{Result, bail};
use kivi_model::cache::LayerState;
use kivi_quant::{PageLayout, Side, page};
use serde::Serialize;

/// A channel stands out if its mean is more than so many times that of the channel in the middle.
pub const OUTLIER_FACTOR: f32 = 3.0;

/// What a head's channels are like.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The largest mean over the median of all channels; none if that is 0.
    pub max_over_median: Option<f32>,
    /// Channels that stand out, the largest first.
    pub outliers: Vec<usize>,
}

/// Magnitudes of the tokens from `first` to `end` of a KV head, `[token][channel]`.
///
/// # Errors
/// A number that is not finite.
pub fn of_head(
    layout: &PageLayout,
    state: &LayerState,
    (head, n_kv_heads): (usize, usize),
    end: usize,
    side: Side,
) -> Result<Vec<Vec<f32>>> {
    let page_tokens = layout.config().page_tokens();
    let mut rows = Vec::new();
    for token in state.left * page_tokens..end {
        let start = ((token / page_tokens - state.left) * n_kv_heads + head) * layout.page_words();
        let words = &state.pages[start..start + layout.page_words()];
        let mut row = vec![0.0; layout.head_dim()];
        page::read_row(layout, side, words, token % page_tokens, &mut row);
        row.iter_mut().for_each(|x| *x = x.abs());
        if let Some(channel) = row.iter().position(|x| !x.is_finite()) {
            bail!("KV head {head}, token {token}, channel {channel}: is not finite; try --kv-dtype f32");
        }
        rows.push(row);
    }
    Ok(rows)
}

impl Summary {
    /// Of rows `[token][channel]`, of which there is at least one.
    pub fn new(rows: &[Vec<f32>]) -> Self {
        let channels = rows.first().map_or(0, Vec::len);
        let mean = |c: usize| rows.iter().map(|row| f64::from(row[c])).sum::<f64>() / rows.len() as f64;
        let means: Vec<f32> = (0..channels).map(|channel| mean(channel) as f32).collect();
        let mut order: Vec<usize> = (0..channels).collect();
        order.sort_by(|a, b| means[*b].total_cmp(&means[*a]));
        let median = order.get(channels / 2).map_or(0.0, |channel| means[*channel]);
        let stands_out = |channel: &usize| means[*channel] > OUTLIER_FACTOR * median;
        let max = order.first().map_or(0.0, |channel| means[*channel]);
        Self {
            max_over_median: (median > 0.0).then(|| max / median),
            outliers: order.into_iter().take_while(stands_out).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use kivi_quant::{Bits, GroupSize, KiviConfig, page::put_row};

    use super::*;

    /// Two pages of two heads, of which the first page left the window.
    #[test]
    fn rows_of_a_head_are_found() {
        let config = KiviConfig::new(Bits::B16, Bits::B16, GroupSize::G32, 128).unwrap();
        let layout = PageLayout::new(config.with_page_tokens(32).unwrap(), 4).unwrap();
        let mut pages = vec![0; 2 * 2 * layout.page_words()];
        for (n, page) in pages.chunks_exact_mut(layout.page_words()).enumerate() {
            for token in 0..32 {
                for (side, sign) in [(Side::Key, 1.0), (Side::Value, -2.0)] {
                    let row = [token, n, 100, 0].map(|x| sign * x as f32);
                    put_row(&layout, side, page, token, &row);
                }
            }
        }
        let state = LayerState { left: 1, pages, ..LayerState::default() };
        let keys = of_head(&layout, &state, (1, 2), 32 + 40, Side::Key).unwrap();
        assert_eq!(
            (keys.len(), &keys[7][..], &keys[39][..]),
            (40, &[7.0, 1.0, 100.0, 0.0][..], &[7.0, 3.0, 100.0, 0.0][..])
        );
        let values = of_head(&layout, &state, (0, 2), 32 + 40, Side::Value).unwrap();
        assert_eq!(values[39], [14.0, 4.0, 200.0, 0.0]);
    }

    #[test]
    fn channels_that_stand_out() {
        let rows = vec![vec![1.0, 9.0, 1.0, 1.0, 4.0], vec![1.0, 11.0, 1.0, 1.0, 4.0]];
        let summary = Summary::new(&rows);
        assert_eq!((summary.max_over_median, summary.outliers), (Some(10.0), vec![1, 4]));
        let zero = Summary::new(&[vec![0.0; 4]]);
        assert_eq!((zero.max_over_median, zero.outliers), (None, vec![]));
    }
}
