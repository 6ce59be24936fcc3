//! Products with packed codes: scales go into the query and into the weights, the inner loops see codes alone.

use half::slice::HalfFloatSliceExt;
use kivi_quant::{PageLayout, Side};

use super::math::{LANES, axpy};

/// Adds `q . k` to the logits of tokens `at .. at + n` of `page`, `logits[i][t]` for query `i`; `q` is
/// `[n_queries, head_dim]`.
///
/// # Equation
/// `q . k_t = sum_c (q_c scale_c) code_tc + sum_c q_c zero_c`, scale and zero being those of the token's group.
#[inline(always)]
pub(super) fn key_logits(
    layout: &PageLayout,
    page: &[u32],
    (at, n): (usize, usize),
    q: &[f32],
    logits: &mut [&mut [f32]],
) {
    let (head_dim, group_size) = (layout.head_dim(), layout.config().group_size());
    let mut params = vec![0.0; 2 * head_dim];
    let mut token = at;
    while token < at + n {
        let end = (token / group_size + 1) * group_size;
        let end = end.min(at + n);
        let words = &page[layout.params(Side::Key, token, 0)..][..head_dim];
        halves(words, &mut params);
        for first in (0..logits.len()).step_by(4) {
            let q = &q[first * head_dim..];
            let logits = &mut logits[first..];
            let range = (token, end, token - at);
            match logits.len() {
                1 => group_logits::<1>(layout, page, range, &params, q, logits),
                2 => group_logits::<2>(layout, page, range, &params, q, logits),
                3 => group_logits::<3>(layout, page, range, &params, q, logits),
                _ => group_logits::<4>(layout, page, range, &params, q, logits),
            }
        }
        token = end;
    }
}

/// Words of two f16 each, as f32.
#[inline(always)]
fn halves(words: &[u32], out: &mut [f32]) {
    for (word, out) in words.iter().zip(out.as_chunks_mut::<2>().0) {
        [half::f16::from_bits(*word as u16), half::f16::from_bits((*word >> 16) as u16)]
            .convert_to_f32_slice(out);
    }
}

#[inline(always)]
fn group_logits<const N: usize>(
    layout: &PageLayout,
    page: &[u32],
    (start, end, out): (usize, usize, usize),
    params: &[f32],
    q: &[f32],
    logits: &mut [&mut [f32]],
) {
    let head_dim = layout.head_dim();
    let mut scaled = vec![[0.0_f32; N]; head_dim];
    let mut constant = [0.0_f32; N];
    for (c, scaled) in scaled.iter_mut().enumerate() {
        for i in 0..N {
            let q = q[i * head_dim + c];
            scaled[i] = q * params[2 * c];
            constant[i] += q * params[2 * c + 1];
        }
    }
    let bits = layout.bits(Side::Key).get();
    let mask = layout.bits(Side::Key).max_code();
    let n_words = layout.token_words(Side::Key);
    let per_word = 32 / bits as usize;
    let mut lanes = vec![[0_u32; LANES]; n_words];
    for token in (start..end).step_by(LANES) {
        let n = LANES.min(end - token);
        let codes = &page[layout.codes_start(Side::Key) + token * n_words..][..n * n_words];
        for (l, row) in codes.chunks_exact(n_words).enumerate() {
            for (lanes, word) in lanes.iter_mut().zip(row) {
                lanes[l] = *word;
            }
        }
        let mut sums = [[0.0_f32; LANES]; N];
        for (word, scaled) in lanes.iter().zip(scaled.chunks_exact(per_word)) {
            for (k, scaled) in scaled.iter().enumerate() {
                let shift = 16 * (k as u32 % 2) + k as u32 / 2 * bits;
                let mut code = [0.0_f32; LANES];
                for l in 0..LANES {
                    code[l] = (word[l] >> shift & mask) as i32 as f32;
                }
                for i in 0..N {
                    for l in 0..LANES {
                        sums[i][l] = code[l].mul_add(scaled[i], sums[i][l]);
                    }
                }
            }
        }
        for i in 0..N {
            let logits = &mut logits[i][out + token - start..][..n];
            for (x, sum) in logits.iter_mut().zip(&sums[i]) {
                *x = sum + constant[i];
            }
        }
    }
}

/// How the codes of a token's values lie in the words of a pair of tokens, for [`mix_values`].
pub(super) struct ValueOrder {
    /// Channel of each place.
    channel: Vec<usize>,
    /// Group of each place.
    group: Vec<usize>,
}

impl ValueOrder {
    pub fn new(layout: &PageLayout) -> Self {
        let mut channel = vec![0; layout.head_dim()];
        for c in 0..layout.head_dim() {
            channel[layout.position(Side::Value, c)] = c;
        }
        let group = channel.iter().map(|c| c / layout.config().group_size()).collect();
        Self { channel, group }
    }
}

/// Adds `sum_t p_t v_t` over tokens `at .. at + n` of `page` to `mixed[i]` (`head_dim` channels) for each query
/// `i`, whose weights are `p[i]`.
///
/// # Equation
/// `sum_t p_t v_tc = sum_t (p_t scale_tg) code_tc + sum_t p_t zero_tg`, `g` the group of channel `c`.
#[inline(always)]
pub(super) fn mix_values(
    layout: &PageLayout,
    order: &ValueOrder,
    page: &[u32],
    (at, n): (usize, usize),
    p: &[&[f32]],
    mixed: &mut [f32],
) {
    let (head_dim, n_groups) = (layout.head_dim(), layout.value_groups());
    let bits = layout.bits(Side::Value).get();
    let mask = layout.bits(Side::Value).max_code();
    let per_unit = 16 / bits as usize;
    let words = &page[layout.params(Side::Value, at, 0)..][..n * n_groups];
    let mut params = vec![0.0; 2 * n * n_groups];
    halves(words, &mut params);
    let mut codes = vec![0.0_f32; head_dim];
    let mut scales = vec![0.0_f32; head_dim];
    let mut sums = vec![0.0_f32; p.len() * head_dim];
    let mut zeros = vec![0.0_f32; p.len() * n_groups];
    let row_words = 2 * layout.token_words(Side::Value);
    for t in 0..n {
        let token = at + t;
        let words = &page[layout.codes_start(Side::Value) + token / 2 * row_words..][..row_words];
        let params = &params[2 * t * n_groups..][..2 * n_groups];
        unpack(words, 16 * (token as u32 % 2), bits, mask, per_unit, &mut codes);
        for (scale, group) in scales.iter_mut().zip(&order.group) {
            *scale = params[2 * group];
        }
        for (code, scale) in codes.iter_mut().zip(&scales) {
            *code *= scale;
        }
        for (i, p) in p.iter().enumerate() {
            axpy(&mut sums[i * head_dim..][..head_dim], p[t], &codes);
            for g in 0..n_groups {
                zeros[i * n_groups + g] += p[t] * params[2 * g + 1];
            }
        }
    }
    for (i, mixed) in mixed.chunks_exact_mut(head_dim).enumerate() {
        for (place, &c) in order.channel.iter().enumerate() {
            mixed[c] += sums[i * head_dim + place] + zeros[i * n_groups + order.group[place]];
        }
    }
}

/// The codes of one token of a pair, in the order of places.
#[inline(always)]
fn unpack(words: &[u32], half: u32, bits: u32, mask: u32, per_unit: usize, codes: &mut [f32]) {
    for (word, codes) in words.iter().zip(codes.chunks_exact_mut(per_unit)) {
        for (j, code) in codes.iter_mut().enumerate() {
            *code = (word >> (half + j as u32 * bits) & mask) as i32 as f32;
        }
    }
}

/// The dequantized rows of tokens `at .. at + n` of `page`, `[n, head_dim]`.
#[inline(always)]
pub(super) fn dequantize(
    layout: &PageLayout,
    side: Side,
    order: &ValueOrder,
    page: &[u32],
    (at, n): (usize, usize),
    out: &mut [f32],
) {
    let head_dim = layout.head_dim();
    let bits = layout.bits(side).get();
    let mask = layout.bits(side).max_code();
    let mut params = vec![0.0; 2 * head_dim.max(layout.value_groups())];
    let mut codes = vec![0.0_f32; head_dim];
    for (t, row) in out[..n * head_dim].chunks_exact_mut(head_dim).enumerate() {
        let token = at + t;
        let first = layout.params(side, token, 0);
        let words = layout.codes_start(side);
        match side {
            Side::Key => {
                if t == 0 || token % layout.config().group_size() == 0 {
                    halves(&page[first..first + head_dim], &mut params);
                }
                let n_words = layout.token_words(side);
                let words = &page[words + token * n_words..][..n_words];
                let per_word = 32 / bits as usize;
                for (c, x) in row.iter_mut().enumerate() {
                    let k = c % per_word;
                    let shift = 16 * (k as u32 % 2) + k as u32 / 2 * bits;
                    let code = (words[c / per_word] >> shift & mask) as i32 as f32;
                    *x = code * params[2 * c] + params[2 * c + 1];
                }
            }
            Side::Value => {
                halves(&page[first..first + layout.value_groups()], &mut params);
                let n_words = 2 * layout.token_words(side);
                let words = &page[words + token / 2 * n_words..][..n_words];
                unpack(words, 16 * (token as u32 % 2), bits, mask, 16 / bits as usize, &mut codes);
                for (place, code) in codes.iter().enumerate() {
                    let g = order.group[place];
                    row[order.channel[place]] = code * params[2 * g] + params[2 * g + 1];
                }
            }
        }
    }
}
