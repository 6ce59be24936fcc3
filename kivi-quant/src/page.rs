//! Packing rows into pages and reading them back, on slices of words. A backend may do it faster, not otherwise.

use half::{bf16, f16};

use crate::{CodeAt, GroupParams, KvDtype, KvElement, PageLayout, Side, group};

/// Stores `row` in `dtype` into `words` (`row.len() * dtype.bytes() / 4` of them), low half first.
///
/// # Panics
/// If `words` is too short.
pub fn store_row<T: KvElement>(dtype: KvDtype, row: &[T], words: &mut [u32]) {
    let bits = |x: T| match dtype {
        KvDtype::F16 => u32::from(f16::from_f32(x.to_f32()).to_bits()),
        KvDtype::Bf16 => u32::from(bf16::from_f32(x.to_f32()).to_bits()),
        KvDtype::F32 => x.to_f32().to_bits(),
    };
    if dtype == KvDtype::F32 {
        row.iter().zip(words).for_each(|(&x, word)| *word = bits(x));
    } else {
        row.chunks_exact(2).zip(words).for_each(|(x, word)| *word = bits(x[0]) | bits(x[1]) << 16);
    }
}

/// Reads a row that [`store_row`] stored.
///
/// # Panics
/// If `words` is too short.
pub fn load_row(dtype: KvDtype, words: &[u32], row: &mut [f32]) {
    let (halves, value): (bool, fn(u16) -> f32) = match dtype {
        KvDtype::F32 => (false, |_| 0.0),
        KvDtype::F16 => (true, |x| f16::from_bits(x).to_f32()),
        KvDtype::Bf16 => (true, |x| bf16::from_bits(x).to_f32()),
    };
    for (i, x) in row.iter_mut().enumerate() {
        *x = if halves { value((words[i / 2] >> (16 * (i % 2))) as u16) } else { f32::from_bits(words[i]) };
    }
}

/// Bits of a scale or a zero.
const HALF: u32 = 0xffff;

fn set(page: &mut [u32], at: CodeAt, mask: u32, bits: u32) {
    page[at.word] = page[at.word] & !(mask << at.shift) | bits << at.shift;
}

fn get(page: &[u32], at: CodeAt, mask: u32) -> u32 {
    page[at.word] >> at.shift & mask
}

fn set_params(
    layout: &PageLayout,
    side: Side,
    page: &mut [u32],
    (token, channel): (usize, usize),
    params: GroupParams,
) {
    set(page, layout.scale(side, token, channel), HALF, params.scale.to_bits().into());
    set(page, layout.zero(side, token, channel), HALF, params.zero.to_bits().into());
}

/// Scale and zero of `channel` of token `token` of a quantized `side` of `page`.
///
/// # Panics
/// If `page` is too short.
pub fn params(layout: &PageLayout, side: Side, page: &[u32], token: usize, channel: usize) -> GroupParams {
    let half = |at| f16::from_bits(get(page, at, HALF) as u16);
    GroupParams {
        scale: half(layout.scale(side, token, channel)),
        zero: half(layout.zero(side, token, channel)),
    }
}

/// Quantizes and packs `group_size` keys, rows `[group_size, head_dim]` in `rows`, as the tokens
/// `token .. token + group_size` of `page`. The first `skip` tokens (sinks, kept elsewhere) do not count for
/// scale and zero; their codes are 0.
///
/// # Panics
/// If `token` is not a multiple of the group size, keys are not quantized, or a slice is too short.
pub fn pack_keys<T: KvElement>(layout: &PageLayout, page: &mut [u32], token: usize, rows: &[T], skip: usize) {
    let (group_size, head_dim) = (layout.config().group_size(), layout.head_dim());
    let bits = layout.bits(Side::Key);
    assert!(bits.is_quantized() && token.is_multiple_of(group_size));
    for channel in 0..head_dim {
        let column = || rows[..group_size * head_dim].iter().skip(channel).step_by(head_dim).copied();
        let params = group::params(column().skip(skip), bits);
        set_params(layout, Side::Key, page, (token, channel), params);
        for (i, x) in column().enumerate() {
            let code = if i < skip { 0 } else { params.quantize(x, bits) };
            set(page, layout.code(Side::Key, token + i, channel), bits.max_code(), code);
        }
    }
}

/// Quantizes and packs the value `row` of `head_dim` channels as token `token` of `page`.
///
/// # Panics
/// If values are not quantized or a slice is too short.
pub fn pack_value<T: KvElement>(layout: &PageLayout, page: &mut [u32], token: usize, row: &[T]) {
    let bits = layout.bits(Side::Value);
    assert!(bits.is_quantized());
    let group_size = layout.config().group_size();
    for (g, values) in row[..layout.head_dim()].chunks(group_size).enumerate() {
        let params = group::params(values.iter().copied(), bits);
        set_params(layout, Side::Value, page, (token, g * group_size), params);
        for (i, &x) in values.iter().enumerate() {
            let at = layout.code(Side::Value, token, g * group_size + i);
            set(page, at, bits.max_code(), params.quantize(x, bits));
        }
    }
}

/// Stores `row` as token `token` of a 16-bit `side` of `page`.
///
/// # Panics
/// If the side is quantized or a slice is too short.
pub fn put_row<T: KvElement>(layout: &PageLayout, side: Side, page: &mut [u32], token: usize, row: &[T]) {
    assert!(!layout.bits(side).is_quantized());
    let start = layout.row_start(side, token);
    store_row(layout.kv_dtype(), &row[..layout.head_dim()], &mut page[start..start + layout.row_words()]);
}

/// Reads token `token` of `page` back into `row` (`head_dim` values), dequantized where it is quantized.
///
/// # Panics
/// If a slice is too short.
pub fn read_row(layout: &PageLayout, side: Side, page: &[u32], token: usize, row: &mut [f32]) {
    let row = &mut row[..layout.head_dim()];
    let bits = layout.bits(side);
    if !bits.is_quantized() {
        return load_row(layout.kv_dtype(), &page[layout.row_start(side, token)..], row);
    }
    for (channel, x) in row.iter_mut().enumerate() {
        let code = get(page, layout.code(side, token, channel), bits.max_code());
        *x = params(layout, side, page, token, channel).dequantize(code);
    }
}
