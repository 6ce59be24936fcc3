//! Products with packed codes: scales go into the query and into the weights, the inner loops see codes alone.
//!
//! A vector holds one field of the words of 16 tokens (keys) or 16 pairs of tokens (values), so that every field is
//! unpacked by one shift and one mask, whatever the width.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kivi_quant::{GroupParams, PageLayout, Side};

use super::math::{LANES, sum};

/// Queries that share the unpacking of a code.
const QUERIES: usize = 4;

type Lanes<T> = [T; LANES];

/// How the codes of one layout lie, and memory for unpacking them.
pub(super) struct Unpacker<'a> {
    layout: &'a PageLayout,
    /// Channel and group of each place of a token's values.
    places: Vec<(usize, usize)>,
    params: Vec<f32>,
    /// Queries or weights, times scale.
    scaled: Vec<Lanes<f32>>,
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
        Self { layout, places, params: Vec::new(), scaled: Vec::new(), words: Vec::new() }
    }

    /// Writes `q . k` of tokens `at .. at + n` of `page` for each query: `logits[i * stride + t]`, `q` being
    /// `[n_queries, head_dim]`.
    ///
    /// # Equation
    /// `q . k_t = sum_c (q_c scale_c) code_tc + sum_c q_c zero_c`, scale and zero being those of the token's group.
    #[inline(always)]
    pub fn key_logits(
        &mut self,
        page: &[u32],
        (at, n): (usize, usize),
        q: &[f32],
        (logits, stride): (&mut [f32], usize),
    ) {
        let (head_dim, group_size) = (self.layout.head_dim(), self.layout.config().group_size());
        let mut token = at;
        while token < at + n {
            let end = ((token / group_size + 1) * group_size).min(at + n);
            halves(&page[self.layout.params(Side::Key, token, 0)..][..head_dim], &mut self.params);
            for (block, q) in q.chunks(QUERIES * head_dim).enumerate() {
                let out = &mut logits[block * QUERIES * stride + token - at..];
                match q.len() / head_dim {
                    1 => self.group_logits::<1>(page, token..end, q, out, stride),
                    2 => self.group_logits::<2>(page, token..end, q, out, stride),
                    3 => self.group_logits::<3>(page, token..end, q, out, stride),
                    _ => self.group_logits::<QUERIES>(page, token..end, q, out, stride),
                }
            }
            token = end;
        }
    }

    /// [`Self::key_logits`] of `N` queries and the tokens of one group.
    #[inline(always)]
    fn group_logits<const N: usize>(
        &mut self,
        page: &[u32],
        tokens: core::ops::Range<usize>,
        q: &[f32],
        logits: &mut [f32],
        stride: usize,
    ) {
        let head_dim = self.layout.head_dim();
        let (bits, mask) = fields(self.layout, Side::Key);
        let mut constant = [0.0_f32; N];
        self.scaled.resize(head_dim, [0.0; LANES]);
        for (c, (scaled, params)) in self.scaled.iter_mut().zip(self.params.as_chunks::<2>().0).enumerate() {
            for i in 0..N {
                scaled[i] = q[i * head_dim + c] * params[0];
                constant[i] += q[i * head_dim + c] * params[1];
            }
        }
        let n_words = self.layout.token_words(Side::Key);
        let start = self.layout.codes_start(Side::Key);
        for token in tokens.clone().step_by(LANES) {
            let n = LANES.min(tokens.end - token);
            transpose(&page[start + token * n_words..][..n * n_words], n_words, &mut self.words);
            let mut sums = [[0.0_f32; LANES]; N];
            for (word, scaled) in self.words.iter().zip(self.scaled.chunks_exact(32 / bits as usize)) {
                for (k, scaled) in scaled.iter().enumerate() {
                    let shift = 16 * (k as u32 % 2) + k as u32 / 2 * bits;
                    let code = unpack(word, shift, mask);
                    #[allow(clippy::needless_range_loop)] // three arrays
                    for i in 0..N {
                        for l in 0..LANES {
                            sums[i][l] = code[l].mul_add(scaled[i], sums[i][l]);
                        }
                    }
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
    pub fn mix_values(
        &mut self,
        page: &[u32],
        (at, n): (usize, usize),
        (p, stride): (&[f32], usize),
        mixed: &mut [f32],
    ) {
        let (head_dim, n_groups) = (self.layout.head_dim(), self.layout.value_groups());
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
        halves(&page[self.layout.params(Side::Value, at, 0)..][..n * n_groups], &mut self.params);
        for (block, mixed) in mixed.chunks_mut(QUERIES * head_dim).enumerate() {
            let p = &p[block * QUERIES * stride..];
            let queries = mixed.len() / head_dim;
            let zeros = self.weigh(queries, (at, n), (p, stride), n_blocks);
            match queries {
                1 => self.mix::<1>(n_blocks, &zeros, mixed),
                2 => self.mix::<2>(n_blocks, &zeros, mixed),
                3 => self.mix::<3>(n_blocks, &zeros, mixed),
                _ => self.mix::<QUERIES>(n_blocks, &zeros, mixed),
            }
        }
    }

    /// `p * scale` of each query, group and token into `scaled`, `[query][group][token % 2][pair]`; returns
    /// `sum_t p_t zero_tg`, `[query][group]`.
    #[inline(always)]
    fn weigh(
        &mut self,
        queries: usize,
        (at, n): (usize, usize),
        (p, stride): (&[f32], usize),
        n_blocks: usize,
    ) -> Vec<f32> {
        let n_groups = self.layout.value_groups();
        let mut zeros = vec![0.0; queries * n_groups];
        self.scaled.clear();
        self.scaled.resize(queries * n_groups * 2 * n_blocks, [0.0; LANES]);
        for i in 0..queries {
            let p = &p[i * stride..][..n];
            for g in 0..n_groups {
                let scaled = &mut self.scaled[(i * n_groups + g) * 2 * n_blocks..][..2 * n_blocks];
                let zero = &mut zeros[i * n_groups + g];
                let params = self.params.as_chunks::<2>().0[g..].iter().step_by(n_groups);
                for ((t, p), params) in p.iter().enumerate().zip(params) {
                    let (pair, odd) = ((at % 2 + t) / 2, (at + t) % 2);
                    scaled[odd * n_blocks + pair / LANES][pair % LANES] = p * params[0];
                    *zero += p * params[1];
                }
            }
        }
        zeros
    }

    /// Adds what `scaled` weighs of the codes in `words`, and `zeros`.
    #[inline(always)]
    fn mix<const N: usize>(&self, n_blocks: usize, zeros: &[f32], mixed: &mut [f32]) {
        let (head_dim, n_groups) = (self.layout.head_dim(), self.layout.value_groups());
        let (bits, mask) = fields(self.layout, Side::Value);
        let n_words = 2 * self.layout.token_words(Side::Value);
        let per_unit = 16 / bits as usize;
        for (place, &(c, g)) in self.places.iter().enumerate() {
            let mut sums = [[0.0_f32; LANES]; N];
            for odd in 0..2 {
                let shift = (16 * odd + place % per_unit * bits as usize) as u32;
                for block in 0..n_blocks {
                    let code = unpack(&self.words[block * n_words + place / per_unit], shift, mask);
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let weight = &self.scaled[((i * n_groups + g) * 2 + odd) * n_blocks + block];
                        for l in 0..LANES {
                            sums[l] = code[l].mul_add(weight[l], sums[l]);
                        }
                    }
                }
            }
            for i in 0..N {
                mixed[i * head_dim + c] += sum(&sums[i]) + zeros[i * n_groups + g];
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
            halves(&page[self.layout.params(Side::Key, token, 0)..][..row.len()], &mut self.params);
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
        let n_groups = self.layout.value_groups();
        halves(&page[self.layout.params(Side::Value, token, 0)..][..n_groups], &mut self.params);
        let (bits, mask) = fields(self.layout, Side::Value);
        let n_words = 2 * self.layout.token_words(Side::Value);
        let words = &page[self.layout.codes_start(Side::Value) + token / 2 * n_words..][..n_words];
        let per_unit = 16 / bits as usize;
        for (word, places) in words.iter().zip(self.places.chunks_exact(per_unit)) {
            for (j, &(c, g)) in places.iter().enumerate() {
                let code = word >> (16 * (token as u32 % 2) + j as u32 * bits) & mask;
                row[c] = code as i32 as f32 * self.params[2 * g] + self.params[2 * g + 1];
            }
        }
    }
}

/// Width and mask of the codes of `side`.
fn fields(layout: &PageLayout, side: Side) -> (u32, u32) {
    (layout.bits(side).get(), layout.bits(side).max_code())
}

/// One field of 16 words.
#[inline(always)]
fn unpack(words: &Lanes<u32>, shift: u32, mask: u32) -> Lanes<f32> {
    let mut code = [0.0; LANES];
    for l in 0..LANES {
        code[l] = (words[l] >> shift & mask) as i32 as f32;
    }
    code
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

/// Scales and zeros as f32, side by side.
fn halves(words: &[u32], out: &mut Vec<f32>) {
    out.resize(2 * words.len(), 0.0);
    if cfg!(target_endian = "little") {
        return bytemuck::cast_slice::<u32, f16>(words).convert_to_f32_slice(out);
    }
    for (word, out) in words.iter().zip(out.as_chunks_mut::<2>().0) {
        let params = GroupParams::from_word(*word);
        *out = [params.scale.to_f32(), params.zero.to_f32()];
    }
}
