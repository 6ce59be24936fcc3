//! Products with packed codes: scales go into the query and into the weights, the inner loops see codes alone.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kivi_quant::{Bits, GroupParams, PageLayout, Side};

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

/// Scales and zeros as f32, side by side.
fn halves(words: &[u32], out: &mut [f32]) {
    if cfg!(target_endian = "little") {
        return bytemuck::cast_slice::<u32, f16>(words).convert_to_f32_slice(out);
    }
    for (word, out) in words.iter().zip(out.as_chunks_mut::<2>().0) {
        let params = GroupParams::from_word(*word);
        *out = [params.scale.to_f32(), params.zero.to_f32()];
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

/// How the codes of a token's values lie in its units of 16 bits.
pub(super) struct ValueOrder {
    /// Channel of each place.
    channel: Vec<usize>,
    /// Group of each place.
    group: Vec<usize>,
    /// Lowest bit of each place in the word that an even or an odd token shares with its neighbour.
    shift: [Vec<u32>; 2],
    /// 1 for the places of a group, 0 for the others: `[group][place]`.
    member: Vec<Vec<f32>>,
}

impl ValueOrder {
    pub fn new(layout: &PageLayout) -> Self {
        let (head_dim, bits) = (layout.head_dim(), layout.bits(Side::Value).get() as usize);
        let mut channel = vec![0; head_dim];
        for c in 0..head_dim {
            channel[layout.position(Side::Value, c)] = c;
        }
        let group: Vec<usize> = channel.iter().map(|c| c / layout.config().group_size()).collect();
        let shift = |odd: usize| (0..head_dim).map(|p| (16 * odd + p % (16 / bits) * bits) as u32).collect();
        let members = |g: usize| group.iter().map(|of| if *of == g { 1.0 } else { 0.0 }).collect();
        let member = (0..layout.value_groups()).map(members).collect();
        Self { shift: [shift(0), shift(1)], member, channel, group }
    }
}

/// Adds `sum_t p_t v_t` over tokens `at .. at + n` of `page` to `mixed[i]` (`head_dim` channels) for each query
/// `i`, whose weights are `p[i]`.
///
/// # Equation
/// `sum_t p_t v_tc = sum_t p_t (scale_tg code_tc) + sum_t p_t zero_tg`, `g` the group of channel `c`.
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
    let mut scratch =
        Scratch { words: vec![0; head_dim], params: vec![0.0; 2 * n_groups], row: vec![0.0; head_dim] };
    let mut sums = vec![0.0_f32; p.len() * head_dim];
    let mut zeros = vec![0.0_f32; p.len() * n_groups];
    for t in 0..n {
        scaled_codes(layout, order, page, at + t, t == 0, &mut scratch);
        for (i, p) in p.iter().enumerate() {
            axpy(&mut sums[i * head_dim..][..head_dim], p[t], &scratch.row);
            for g in 0..n_groups {
                zeros[i * n_groups + g] += p[t] * scratch.params[2 * g + 1];
            }
        }
    }
    for (i, mixed) in mixed.chunks_exact_mut(head_dim).enumerate() {
        for (place, &c) in order.channel.iter().enumerate() {
            mixed[c] += sums[i * head_dim + place] + zeros[i * n_groups + order.group[place]];
        }
    }
}

/// What unpacking a token of values needs.
struct Scratch {
    /// The word of each place.
    words: Vec<u32>,
    /// Scale and zero of each group.
    params: Vec<f32>,
    /// `scale * code` of each place.
    row: Vec<f32>,
}

/// `scale * code` of each place of `token` into `scratch.row`, and its scales and zeros into `scratch.params`.
/// Tokens come in order; `first` is the first of them. Loops run over whole rows, which vectorises at any width.
#[inline(always)]
fn scaled_codes(
    layout: &PageLayout,
    order: &ValueOrder,
    page: &[u32],
    token: usize,
    first: bool,
    scratch: &mut Scratch,
) {
    let n_words = 2 * layout.token_words(Side::Value);
    halves(&page[layout.params(Side::Value, token, 0)..][..layout.value_groups()], &mut scratch.params);
    if first || token.is_multiple_of(2) {
        let words = &page[layout.codes_start(Side::Value) + token / 2 * n_words..][..n_words];
        match layout.bits(Side::Value) {
            Bits::B2 => repeat::<8>(words, &mut scratch.words),
            Bits::B4 => repeat::<4>(words, &mut scratch.words),
            _ => repeat::<2>(words, &mut scratch.words),
        }
    }
    let mask = layout.bits(Side::Value).max_code();
    let fields = scratch.words.iter().zip(&order.shift[token % 2]);
    for (code, (word, shift)) in scratch.row.iter_mut().zip(fields) {
        *code = (word >> shift & mask) as i32 as f32;
    }
    scale_groups(&mut scratch.row, &order.member, &scratch.params);
}

/// Multiplies each place with the scale of its group.
#[inline(always)]
fn scale_groups(row: &mut [f32], member: &[Vec<f32>], params: &[f32]) {
    match member {
        [_] => row.iter_mut().for_each(|x| *x *= params[0]),
        [a, b] => {
            for ((x, a), b) in row.iter_mut().zip(a).zip(b) {
                *x *= a * params[0] + b * params[2];
            }
        }
        [a, b, c, d] => {
            for ((((x, a), b), c), d) in row.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *x *= (a * params[0] + b * params[2]) + (c * params[4] + d * params[6]);
            }
        }
        _ => {
            for (p, x) in row.iter_mut().enumerate() {
                *x *= member.iter().enumerate().map(|(g, m)| m[p] * params[2 * g]).sum::<f32>();
            }
        }
    }
}

/// Each word `N` times.
#[inline(always)]
fn repeat<const N: usize>(words: &[u32], out: &mut [u32]) {
    for (out, word) in out.as_chunks_mut::<N>().0.iter_mut().zip(words) {
        *out = [*word; N];
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
    let mut params = vec![0.0; 2 * head_dim];
    let n_groups = layout.value_groups();
    let mut scratch =
        Scratch { words: vec![0; head_dim], params: vec![0.0; 2 * n_groups], row: vec![0.0; head_dim] };
    for (t, row) in out[..n * head_dim].chunks_exact_mut(head_dim).enumerate() {
        let token = at + t;
        if side == Side::Value {
            scaled_codes(layout, order, page, token, t == 0, &mut scratch);
            for (place, code) in scratch.row.iter().enumerate() {
                row[order.channel[place]] = code + scratch.params[2 * order.group[place] + 1];
            }
            continue;
        }
        if t == 0 || token % layout.config().group_size() == 0 {
            halves(&page[layout.params(side, token, 0)..][..head_dim], &mut params);
        }
        let n_words = layout.token_words(side);
        let words = &page[layout.codes_start(side) + token * n_words..][..n_words];
        let per_word = 32 / bits as usize;
        for (c, x) in row.iter_mut().enumerate() {
            let k = c % per_word;
            let shift = 16 * (k as u32 % 2) + k as u32 / 2 * bits;
            let code = (words[c / per_word] >> shift & mask) as i32 as f32;
            *x = code * params[2 * c] + params[2 * c + 1];
        }
    }
}
