//! Where the rows of a head lie: sinks, packed pages, the ring, the step itself.

use core::ops::Range;

use half::slice::HalfFloatSliceExt;
use kivi_kernels::{KvLayer, Rows};
use kivi_quant::{KvDtype, Side, page};

use crate::Cpu;
use crate::sequence::Sequence;
use crate::view::row;

/// One KV head of one sequence of a step.
pub(super) struct Head<'a> {
    pub cache: &'a KvLayer<Cpu<f32>>,
    pub seq: &'a Sequence<'a>,
    pub head: usize,
    /// New rows in the cache's dtype, `[n_new, head_dim]`.
    pub k_new: Vec<f32>,
    pub v_new: Vec<f32>,
}

/// A run of tokens that lie in one place.
pub(super) enum Run<'a> {
    /// Packed codes: the page and the first token in it.
    Packed(&'a [u32], usize),
    /// Rows in the cache's dtype, one after the other.
    Stored(&'a [u32]),
    /// New rows.
    New(&'a [f32]),
}

impl<'a> Head<'a> {
    pub fn new(
        cache: &'a KvLayer<Cpu<f32>>,
        seq: &'a Sequence<'a>,
        head: usize,
        [k_new, v_new]: [&Rows<'_, Cpu<f32>, f32>; 2],
    ) -> Self {
        let head_dim = cache.layout().head_dim();
        let rounded = |new: &Rows<'_, Cpu<f32>, f32>| {
            let rows = seq.rows.clone().flat_map(|i| &row(new, i)[head * head_dim..][..head_dim]);
            let dtype = cache.layout().kv_dtype();
            rows.map(|&x| dtype.round(x)).collect()
        };
        Self { cache, seq, head, k_new: rounded(k_new), v_new: rounded(v_new) }
    }

    /// The longest run of `side` that starts with `token` and ends before `end`, and its length.
    pub fn run(&self, side: Side, token: usize, end: usize) -> (Run<'_>, usize) {
        let (cache, seq, head) = (self.cache, self.seq, self.head);
        let (layout, config) = (cache.layout(), cache.layout().config());
        let (new, packed, ring, sink) = match side {
            Side::Key => (&self.k_new, seq.packed.k, &cache.k_ring, &cache.k_sink),
            Side::Value => (&self.v_new, seq.packed.v, &cache.v_ring, &cache.v_sink),
        };
        let quantized = layout.bits(side).is_quantized();
        let sinks = if quantized { config.sink_tokens().min(seq.len) } else { 0 };
        let rows = |from: usize, n: usize| from..from + n * layout.row_words();
        if token >= seq.len {
            let start = (token - seq.len) * layout.head_dim();
            let n = end - token;
            return (Run::New(&new[start..start + n * layout.head_dim()]), n);
        }
        if token < sinks {
            let n = end.min(sinks) - token;
            return (Run::Stored(&sink.0[rows(seq.sink(cache, head, token).start, n)]), n);
        }
        if token >= packed {
            let ring_rows = config.residual_length();
            let n = (end.min(seq.len) - token).min(ring_rows - token % ring_rows);
            return (Run::Stored(&ring.0[rows(seq.ring(cache, head, token).start, n)]), n);
        }
        let at = token % config.page_tokens();
        let n = (end.min(packed) - token).min(config.page_tokens() - at);
        let page = &cache.pool.0[seq.page(cache, head, token)];
        if quantized {
            return (Run::Packed(page, at), n);
        }
        (Run::Stored(&page[rows(layout.row_start(side, at), n)]), n)
    }
}

/// Rows in `dtype` as f32.
pub(super) fn load(dtype: KvDtype, words: &[u32], out: &mut [f32]) {
    if cfg!(target_endian = "big") {
        return page::load_row(dtype, words, out);
    }
    match dtype {
        KvDtype::F32 => out.copy_from_slice(bytemuck::cast_slice(words)),
        KvDtype::F16 => bytemuck::cast_slice::<u32, half::f16>(words).convert_to_f32_slice(out),
        KvDtype::Bf16 => bytemuck::cast_slice::<u32, half::bf16>(words).convert_to_f32_slice(out),
    }
}

/// The tokens of `range`, cut where their rows lie in different places.
pub(super) fn runs<'a>(
    head: &'a Head<'a>,
    side: Side,
    range: Range<usize>,
) -> impl Iterator<Item = (Run<'a>, Range<usize>)> {
    let mut token = range.start;
    core::iter::from_fn(move || {
        (token < range.end).then(|| {
            let (run, n) = head.run(side, token, range.end);
            token += n;
            (run, token - n..token)
        })
    })
}
