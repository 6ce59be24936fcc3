//! Writing the KIVI cache.

use kivi_kernels::KvLayer;
use kivi_kernels::Rows;
use kivi_kernels::ops::{AppendParts, ClearPagesParts};
use kivi_quant::{Side, page};

use crate::sequence::Sequence;
use crate::view::row;
use crate::{Accum, Cpu};

/// Packs what is due, from the ring or the new rows; then rings the rest.
pub(crate) fn append<A: Accum>(_: &Cpu<A>, op: AppendParts<'_, Cpu<A>>) {
    let AppendParts { k_new, v_new, cache, batch, group } = op;
    for seq in Sequence::all(batch, group).filter(|seq| seq.active) {
        for head in 0..cache.n_kv_heads() {
            pack_keys(cache, &seq, head, &k_new);
            pack_values(cache, &seq, head, &v_new);
            keep(cache, &seq, head, Side::Key, &k_new);
            keep(cache, &seq, head, Side::Value, &v_new);
        }
    }
}

fn pack_keys<A: Accum>(
    cache: &mut KvLayer<Cpu<A>>,
    seq: &Sequence<'_>,
    head: usize,
    new: &Rows<'_, Cpu<A>, A>,
) {
    let layout = *cache.layout();
    let config = layout.config();
    let due = seq.packed.k..seq.packed_next.k;
    if !layout.bits(Side::Key).is_quantized() {
        return put_rows(cache, seq, head, Side::Key, new);
    }
    for token in due.step_by(config.group_size()) {
        let group = token..token + config.group_size();
        let rows: Vec<f32> = group.flat_map(|t| full_row(cache, seq, head, Side::Key, new, t)).collect();
        let skip = config.sink_tokens().saturating_sub(token).min(config.group_size());
        let page = seq.page_mut(cache, head, token);
        page::pack_keys(&layout, page, token % config.page_tokens(), &rows, skip);
    }
}

fn pack_values<A: Accum>(
    cache: &mut KvLayer<Cpu<A>>,
    seq: &Sequence<'_>,
    head: usize,
    new: &Rows<'_, Cpu<A>, A>,
) {
    let layout = *cache.layout();
    let config = layout.config();
    if !layout.bits(Side::Value).is_quantized() {
        return put_rows(cache, seq, head, Side::Value, new);
    }
    for token in seq.packed.v.max(config.sink_tokens())..seq.packed_next.v {
        let row = full_row(cache, seq, head, Side::Value, new, token);
        let page = seq.page_mut(cache, head, token);
        page::pack_value(&layout, page, token % config.page_tokens(), &row);
    }
}

/// 16 bits: new rows go to pages at once.
fn put_rows<A: Accum>(
    cache: &mut KvLayer<Cpu<A>>,
    seq: &Sequence<'_>,
    head: usize,
    side: Side,
    new: &Rows<'_, Cpu<A>, A>,
) {
    let layout = *cache.layout();
    for token in seq.len..seq.end() {
        let row = new_row(cache, seq, head, new, token);
        let page = seq.page_mut(cache, head, token);
        page::put_row(&layout, side, page, token % layout.config().page_tokens(), &row);
    }
}

/// New rows that are not packed go to the ring; sinks are kept besides.
fn keep<A: Accum>(
    cache: &mut KvLayer<Cpu<A>>,
    seq: &Sequence<'_>,
    head: usize,
    side: Side,
    new: &Rows<'_, Cpu<A>, A>,
) {
    let layout = *cache.layout();
    if !layout.bits(side).is_quantized() {
        return;
    }
    let next = if side == Side::Key { seq.packed_next.k } else { seq.packed_next.v };
    for token in seq.len..seq.end() {
        let row = new_row(cache, seq, head, new, token);
        let (ring_row, sink_row) = (seq.ring(cache, head, token), seq.sink(cache, head, token));
        let (ring, sink) = match side {
            Side::Key => (&mut cache.k_ring.0, &mut cache.k_sink.0),
            Side::Value => (&mut cache.v_ring.0, &mut cache.v_sink.0),
        };
        if token >= next {
            page::store_row(layout.kv_dtype(), &row, &mut ring[ring_row]);
        }
        if token < layout.config().sink_tokens() {
            page::store_row(layout.kv_dtype(), &row, &mut sink[sink_row]);
        }
    }
}

/// The row of `token`, which is not packed: from the ring or the new rows.
fn full_row<A: Accum>(
    cache: &KvLayer<Cpu<A>>,
    seq: &Sequence<'_>,
    head: usize,
    side: Side,
    new: &Rows<'_, Cpu<A>, A>,
    token: usize,
) -> Vec<f32> {
    if token >= seq.len {
        return new_row(cache, seq, head, new, token);
    }
    let ring = if side == Side::Key { &cache.k_ring } else { &cache.v_ring };
    let mut row = vec![0.0; cache.layout().head_dim()];
    page::load_row(cache.layout().kv_dtype(), &ring.0[seq.ring(cache, head, token)], &mut row);
    row
}

/// The new row of `token`, rounded to the cache's `kv_dtype`.
pub(super) fn new_row<A: Accum>(
    cache: &KvLayer<Cpu<A>>,
    seq: &Sequence<'_>,
    head: usize,
    new: &Rows<'_, Cpu<A>, A>,
    token: usize,
) -> Vec<f32> {
    let (head_dim, dtype) = (cache.layout().head_dim(), cache.layout().kv_dtype());
    let row = row(new, seq.rows.start + token - seq.len);
    row[head * head_dim..][..head_dim].iter().map(|&x| dtype.round(x.to_f64() as f32)).collect()
}

/// Zeroes whole pages, all heads.
pub(crate) fn clear_pages<A: Accum>(_: &Cpu<A>, op: ClearPagesParts<'_, Cpu<A>>) {
    let words = op.cache.n_kv_heads() * op.cache.layout().page_words();
    for &page in &op.pages.0[..op.n] {
        op.cache.pool.0[page as usize * words..][..words].fill(0);
    }
}
