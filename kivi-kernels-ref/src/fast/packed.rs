//! Products with packed codes: scales go into the query and into the weights, the inner loops see codes alone.
//!
//! A vector holds one field of the words of 16 tokens (keys) or 16 pairs of tokens (values), so that every field is
//! unpacked by one shift and one mask, whatever the width.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kivi_quant::{PageLayout, Side};

use pulp::Simd;

use super::math::{LANES, dot};

/// Queries that share the unpacking of a code.
const QUERIES: usize = 4;

type Lanes<T> = [T; LANES];

/// How the codes of one layout lie, and memory for unpacking them.
pub(super) struct Unpacker<'a> {
    layout: &'a PageLayout,
    /// Channel and group of each place of a token's values.
    places: Vec<(usize, usize)>,
    params: Vec<f32>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    /// Queries or weights, times scale.
    scaled: Vec<f32>,
    words: Vec<Lanes<u32>>,
}

impl<'a> Unpacker<'a> {
    pub fn new(layout: &'a PageLayout) -> Self {
        let mut places = vec![(0, 0); layout.head_dim()];
        if layout.bits(Side::Value).is_quantized() {
            for c in 0..layout.head_dim() {
                places[layout.position(Side::Value, c)] = (c, c / layout.config().group_size());
            }
        }
        let none = Vec::new;
        Self {
            layout,
            places,
            params: none(),
            scales: none(),
            zeros: none(),
            scaled: none(),
            words: Vec::new(),
        }
    }

    /// Writes `q . k` of tokens `at .. at + n` of `page` for each query: `logits[i * stride + t]`, `q` being
    /// `[n_queries, head_dim]`.
    ///
    /// # Equation
    /// `q . k_t = sum_c (q_c scale_c) code_tc + sum_c q_c zero_c`, scale and zero being those of the token's group.
    #[inline(always)]
    pub fn key_logits<S: Simd>(
        &mut self,
        simd: S,
        page: &[u32],
        (at, n): (usize, usize),
        q: &[f32],
        (logits, stride): (&mut [f32], usize),
    ) {
        let (head_dim, group_size) = (self.layout.head_dim(), self.layout.config().group_size());
        let mut token = at;
        while token < at + n {
            let end = ((token / group_size + 1) * group_size).min(at + n);
            self.read_key_params(page, token);
            self.scales.clear();
            self.zeros.clear();
            let params = self.params.as_chunks::<2>().0;
            self.scales.extend(params.iter().map(|x| x[0]));
            self.zeros.extend(params.iter().map(|x| x[1]));
            for (block, q) in q.chunks(QUERIES * head_dim).enumerate() {
                let out = &mut logits[block * QUERIES * stride + token - at..];
                match q.len() / head_dim {
                    1 => self.group_logits::<S, 1>(simd, page, token..end, q, out, stride),
                    2 => self.group_logits::<S, 2>(simd, page, token..end, q, out, stride),
                    3 => self.group_logits::<S, 3>(simd, page, token..end, q, out, stride),
                    _ => self.group_logits::<S, QUERIES>(simd, page, token..end, q, out, stride),
                }
            }
            token = end;
        }
    }

    /// [`Self::key_logits`] of `N` queries and the tokens of one group.
    #[inline(always)]
    fn group_logits<S: Simd, const N: usize>(
        &mut self,
        simd: S,
        page: &[u32],
        tokens: core::ops::Range<usize>,
        q: &[f32],
        logits: &mut [f32],
        stride: usize,
    ) {
        let head_dim = self.layout.head_dim();
        let (bits, mask) = fields(self.layout, Side::Key);
        let mut constant = [0.0_f32; N];
        self.scaled.clear();
        for (constant, q) in constant.iter_mut().zip(q.chunks_exact(head_dim)) {
            *constant = dot(simd, q, &self.zeros);
            self.scaled.extend(q.iter().zip(&self.scales).map(|(q, scale)| q * scale));
        }
        let (scaled, per_word) = (&self.scaled, 32 / bits as usize);
        let n_words = self.layout.token_words(Side::Key);
        let start = self.layout.codes_start(Side::Key);
        for token in tokens.clone().step_by(LANES) {
            let n = LANES.min(tokens.end - token);
            transpose(&page[start + token * n_words..][..n * n_words], n_words, &mut self.words);
            let mut sums = [[0.0_f32; LANES]; N];
            for v in 0..LANES / S::F32_LANES {
                let mut sum = [simd.splat_f32s(0.0); N];
                for (w, word) in self.words.iter().enumerate() {
                    let word = S::as_simd_u32s(word).0[v];
                    for k in 0..per_word {
                        let shift = 16 * (k as u32 % 2) + k as u32 / 2 * bits;
                        let code = unpack(simd, word, shift, mask);
                        for (i, sum) in sum.iter_mut().enumerate() {
                            let scaled = simd.splat_f32s(scaled[i * head_dim + w * per_word + k]);
                            *sum = simd.mul_add_e_f32s(code, scaled, *sum);
                        }
                    }
                }
                for (sums, sum) in sums.iter_mut().zip(sum) {
                    S::as_mut_simd_f32s(sums).0[v] = sum;
                }
            }
            for i in 0..N {
                let logits = &mut logits[i * stride + token - tokens.start..][..n];
                for (x, sum) in logits.iter_mut().zip(&sums[i]) {
                    *x = sum + constant[i];
                }
            }
        }
    }

    /// Adds `sum_t p_t v_t` over tokens `at .. at + n` of `page` to `mixed` (`[n_queries, head_dim]`); the weights of
    /// query `i` are `p[i * stride..]`.
    ///
    /// # Equation
    /// `sum_t p_t v_tc = sum_t (p_t scale_tg) code_tc + sum_t p_t zero_tg`, `g` the group of channel `c`.
    #[inline(always)]
    pub fn mix_values<S: Simd>(
        &mut self,
        simd: S,
        page: &[u32],
        (at, n): (usize, usize),
        (p, stride): (&[f32], usize),
        mixed: &mut [f32],
    ) {
        let head_dim = self.layout.head_dim();
        let pairs = at / 2..(at + n).div_ceil(2);
        let n_words = 2 * self.layout.token_words(Side::Value);
        let n_blocks = pairs.len().div_ceil(LANES);
        let words = &page[self.layout.codes_start(Side::Value) + pairs.start * n_words..];
        self.words.clear();
        for block in words[..pairs.len() * n_words].chunks(LANES * n_words) {
            let mut lanes = Vec::new();
            transpose(block, n_words, &mut lanes);
            self.words.extend(lanes);
        }
        self.read_value_params(page, pairs, n_blocks);
        for (block, mixed) in mixed.chunks_mut(QUERIES * head_dim).enumerate() {
            let p = &p[block * QUERIES * stride..];
            let queries = mixed.len() / head_dim;
            let zeros = self.weigh(simd, queries, (at, n), (p, stride), n_blocks);
            match queries {
                1 => self.mix::<S, 1>(simd, n_blocks, &zeros, mixed),
                2 => self.mix::<S, 2>(simd, n_blocks, &zeros, mixed),
                3 => self.mix::<S, 3>(simd, n_blocks, &zeros, mixed),
                _ => self.mix::<S, QUERIES>(simd, n_blocks, &zeros, mixed),
            }
        }
    }

    /// `p * scale` of each query, group and token into `scaled`, `[query][group][token % 2][pair]`; returns
    /// `sum_t p_t zero_tg`, `[query][group]`.
    #[inline(always)]
    fn weigh<S: Simd>(
        &mut self,
        simd: S,
        queries: usize,
        (at, n): (usize, usize),
        (p, stride): (&[f32], usize),
        n_blocks: usize,
    ) -> Vec<f32> {
        let n_groups = self.layout.value_groups();
        let half = n_blocks * LANES;
        let mut weights = vec![0.0; 2 * half];
        let mut zeros = vec![0.0; queries * n_groups];
        self.scaled.clear();
        for i in 0..queries {
            by_parity(p[i * stride..][..n].iter(), at, &mut weights);
            for g in 0..n_groups {
                let of_group = g * 2 * half..(g + 1) * 2 * half;
                zeros[i * n_groups + g] = dot(simd, &weights, &self.zeros[of_group.clone()]);
                let scales = &self.scales[of_group];
                self.scaled.extend(weights.iter().zip(scales).map(|(p, scale)| p * scale));
            }
        }
        zeros
    }

    /// Scales and zeros of pairs of tokens, `[group][token % 2][pair]`, 0 where there is no pair.
    #[inline(always)]
    fn read_value_params(&mut self, page: &[u32], pairs: core::ops::Range<usize>, n_blocks: usize) {
        let n_groups = self.layout.value_groups();
        let start = self.layout.scale(Side::Value, 2 * pairs.start, 0).word;
        halves(&page[start..][..pairs.len() * 2 * n_groups], &mut self.params);
        let half = n_blocks * LANES;
        for (out, offset) in [(&mut self.scales, 0), (&mut self.zeros, 2 * n_groups)] {
            out.clear();
            out.resize(2 * n_groups * half, 0.0);
            // Groups and halves are in the order of a pair's words.
            for (i, out) in out.chunks_exact_mut(half).enumerate() {
                let params = self.params[offset + i..].iter().step_by(4 * n_groups);
                out.iter_mut().zip(params).for_each(|(out, x)| *out = *x);
            }
        }
    }

    /// `[scale, zero]` of each channel in the group of keys that `token` is in.
    #[inline(always)]
    fn read_key_params(&mut self, page: &[u32], token: usize) {
        let head_dim = self.layout.head_dim();
        halves(&page[self.layout.scale(Side::Key, token, 0).word..][..head_dim], &mut self.params);
        self.params.as_chunks_mut::<4>().0.iter_mut().for_each(|pair| pair.swap(1, 2));
    }

    /// Adds what `scaled` weighs of the codes in `words`, and `zeros`.
    #[inline(always)]
    fn mix<S: Simd, const N: usize>(&self, simd: S, n_blocks: usize, zeros: &[f32], mixed: &mut [f32]) {
        let (head_dim, n_groups) = (self.layout.head_dim(), self.layout.value_groups());
        let (bits, mask) = fields(self.layout, Side::Value);
        let n_words = 2 * self.layout.token_words(Side::Value);
        let per_unit = 16 / bits as usize;
        let scaled = self.scaled.as_chunks::<LANES>().0;
        for (place, &(c, g)) in self.places.iter().enumerate() {
            let mut sums = [simd.splat_f32s(0.0); N];
            for odd in 0..2 {
                let shift = (16 * odd + place % per_unit * bits as usize) as u32;
                for block in 0..n_blocks {
                    let word = S::as_simd_u32s(&self.words[block * n_words + place / per_unit]).0;
                    for (v, word) in word.iter().enumerate() {
                        let code = unpack(simd, *word, shift, mask);
                        for (i, sum) in sums.iter_mut().enumerate() {
                            let weight = &scaled[((i * n_groups + g) * 2 + odd) * n_blocks + block];
                            *sum = simd.mul_add_e_f32s(code, S::as_simd_f32s(weight).0[v], *sum);
                        }
                    }
                }
            }
            for (i, sum) in sums.into_iter().enumerate() {
                mixed[i * head_dim + c] += simd.reduce_sum_f32s(sum) + zeros[i * n_groups + g];
            }
        }
    }

    /// The dequantized rows of tokens `at .. at + n` of `page` into `out`, `[n, head_dim]`.
    #[inline(always)]
    pub fn dequantize(&mut self, side: Side, page: &[u32], (at, n): (usize, usize), out: &mut [f32]) {
        let head_dim = self.layout.head_dim();
        for (token, row) in (at..at + n).zip(out.chunks_exact_mut(head_dim)) {
            match side {
                Side::Key => self.dequantize_key(page, token, token == at, row),
                Side::Value => self.dequantize_value(page, token, row),
            }
        }
    }

    #[inline(always)]
    fn dequantize_key(&mut self, page: &[u32], token: usize, first: bool, row: &mut [f32]) {
        if first || token.is_multiple_of(self.layout.config().group_size()) {
            self.read_key_params(page, token);
        }
        let (bits, mask) = fields(self.layout, Side::Key);
        let n_words = self.layout.token_words(Side::Key);
        let words = &page[self.layout.codes_start(Side::Key) + token * n_words..][..n_words];
        let per_word = 32 / bits as usize;
        let params = self.params.as_chunks::<2>().0.chunks_exact(per_word);
        for ((word, row), params) in words.iter().zip(row.chunks_exact_mut(per_word)).zip(params) {
            for (k, (x, params)) in row.iter_mut().zip(params).enumerate() {
                let shift = 16 * (k as u32 % 2) + k as u32 / 2 * bits;
                *x = (word >> shift & mask) as i32 as f32 * params[0] + params[1];
            }
        }
    }

    #[inline(always)]
    fn dequantize_value(&mut self, page: &[u32], token: usize, row: &mut [f32]) {
        let (n_groups, odd) = (self.layout.value_groups(), token % 2);
        let start = self.layout.scale(Side::Value, token, 0).word;
        halves(&page[start..][..2 * n_groups], &mut self.params);
        // Those of the pair's other token lie in between.
        let (scales, zeros) = (&self.params[odd..2 * n_groups], &self.params[2 * n_groups + odd..]);
        let (bits, mask) = fields(self.layout, Side::Value);
        let n_words = 2 * self.layout.token_words(Side::Value);
        let words = &page[self.layout.codes_start(Side::Value) + token / 2 * n_words..][..n_words];
        let per_unit = 16 / bits as usize;
        for (word, places) in words.iter().zip(self.places.chunks_exact(per_unit)) {
            for (j, &(c, g)) in places.iter().enumerate() {
                let code = word >> (16 * odd as u32 + j as u32 * bits) & mask;
                row[c] = code as i32 as f32 * scales[2 * g] + zeros[2 * g];
            }
        }
    }
}

/// The elements that belong to tokens `at ..`, those of even tokens to the first half of `out`, those of odd ones to
/// the second, one place a pair of tokens.
#[inline(always)]
fn by_parity<'x>(x: impl Iterator<Item = &'x f32> + Clone, at: usize, out: &mut [f32]) {
    let (even, odd) = out.split_at_mut(out.len() / 2);
    let starts_odd = at % 2;
    for (out, x) in even[starts_odd..].iter_mut().zip(x.clone().skip(starts_odd).step_by(2)) {
        *out = *x;
    }
    for (out, x) in odd.iter_mut().zip(x.skip(1 - starts_odd).step_by(2)) {
        *out = *x;
    }
}

/// Width and mask of the codes of `side`.
fn fields(layout: &PageLayout, side: Side) -> (u32, u32) {
    (layout.bits(side).get(), layout.bits(side).max_code())
}

/// One field of each word, as f32: its bits are those of the number 2^23 + code.
#[inline(always)]
fn unpack<S: Simd>(simd: S, words: S::u32s, shift: u32, mask: u32) -> S::f32s {
    const BIAS: f32 = 8_388_608.0;
    let code =
        simd.and_u32s(simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s(shift)), simd.splat_u32s(mask));
    let biased = simd.or_u32s(code, simd.splat_u32s(BIAS.to_bits()));
    simd.sub_f32s(simd.transmute_f32s_u32s(biased), simd.splat_f32s(BIAS))
}

/// Rows of `n_words` words, at most 16 of them, as columns; missing rows are 0.
#[inline(always)]
fn transpose(rows: &[u32], n_words: usize, columns: &mut Vec<Lanes<u32>>) {
    columns.clear();
    columns.resize(n_words, [0; LANES]);
    for (l, row) in rows.chunks_exact(n_words).enumerate() {
        for (column, word) in columns.iter_mut().zip(row) {
            column[l] = *word;
        }
    }
}

/// The two f16 of each word as f32, low half first.
fn halves(words: &[u32], out: &mut Vec<f32>) {
    out.resize(2 * words.len(), 0.0);
    if cfg!(target_endian = "little") {
        return bytemuck::cast_slice::<u32, f16>(words).convert_to_f32_slice(out);
    }
    for (word, out) in words.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = [*word, word >> 16].map(|half| f16::from_bits(half as u16).to_f32());
    }
}
