//! The page layout: every code has bits of its own, and a word holds what a kernel wants together.

use std::collections::HashMap;

use kivi_quant::{Bits, CodeAt, GroupSize, KiviConfig, KvDtype, PageLayout, Side, linear, page};
use proptest::prelude::*;

const SIDES: [Side; 2] = [Side::Key, Side::Value];

fn layout(k_bits: Bits, v_bits: Bits, group: GroupSize, groups: usize, head_dim: usize) -> PageLayout {
    let config = KiviConfig::new(k_bits, v_bits, group, group.get()).unwrap();
    PageLayout::new(config.with_page_tokens(groups * group.get()).unwrap(), head_dim).unwrap()
}

fn any_layout() -> impl Strategy<Value = PageLayout> {
    let bits = || prop::sample::select(Bits::ALL.to_vec());
    (bits(), bits(), prop::sample::select(GroupSize::ALL.to_vec()), 1..5_usize, 1..33_usize)
        .prop_map(|(k_bits, v_bits, group, groups, tiles)| layout(k_bits, v_bits, group, groups, 16 * tiles))
}

/// Takes `mask` of `word` for one owner.
fn take(owned: &mut [u32], word: usize, mask: u32) -> Result<(), TestCaseError> {
    prop_assert_eq!(owned[word] & mask, 0, "word {} has two owners", word);
    owned[word] |= mask;
    Ok(())
}

proptest! {
    /// Codes, parameters and rows partition a page: no bit has two owners, none is unused.
    #[test]
    fn a_page_is_a_bijection(layout in any_layout()) {
        let mut owned = vec![0_u32; layout.page_words()];
        let tokens = layout.config().page_tokens();
        for side in SIDES {
            let bits = layout.bits(side);
            if !bits.is_quantized() {
                for token in 0..tokens {
                    let start = layout.row_start(side, token);
                    (start..start + layout.row_words()).try_for_each(|word| take(&mut owned, word, u32::MAX))?;
                }
                continue;
            }
            let mut params = vec![0_u32; layout.page_words()];
            for token in 0..tokens {
                for channel in 0..layout.head_dim() {
                    let CodeAt { word, shift } = layout.code(side, token, channel);
                    take(&mut owned, word, bits.max_code() << shift)?;
                    for CodeAt { word, shift } in
                        [layout.scale(side, token, channel), layout.zero(side, token, channel)]
                    {
                        params[word] |= 0xffff << shift;
                    }
                }
            }
            (0..params.len()).try_for_each(|word| take(&mut owned, word, params[word]))?;
        }
        prop_assert!(owned.iter().all(|&bits| bits == u32::MAX));
    }

    /// Elements share a scale, and a zero, exactly when they are in one group; no scale is another's zero.
    #[test]
    fn parameters_follow_the_groups(layout in any_layout(), picks in prop::collection::vec(any::<[u16; 2]>(), 40)) {
        let group = layout.config().group_size();
        let element = |[t, c]: [u16; 2]| {
            (t as usize % layout.config().page_tokens(), c as usize % layout.head_dim())
        };
        for side in SIDES.into_iter().filter(|&side| layout.bits(side).is_quantized()) {
            let group_of = |(t, c): (usize, usize)| if side == Side::Key { (t / group, c) } else { (t, c / group) };
            for pair in picks.windows(2) {
                let (a, b) = (element(pair[0]), element(pair[1]));
                let same = layout.scale(side, a.0, a.1) == layout.scale(side, b.0, b.1);
                prop_assert_eq!(same, group_of(a) == group_of(b));
                let same = layout.zero(side, a.0, a.1) == layout.zero(side, b.0, b.1);
                prop_assert_eq!(same, group_of(a) == group_of(b));
                prop_assert_ne!(layout.scale(side, a.0, a.1), layout.zero(side, b.0, b.1));
            }
        }
    }

    /// Every part starts at a multiple of 16 bytes.
    #[test]
    fn parts_are_aligned(layout in any_layout()) {
        for side in SIDES {
            prop_assert_eq!(layout.codes_start(side) % 4, 0);
            prop_assert_eq!(layout.params_start(side) % 4, 0);
        }
        prop_assert_eq!(layout.page_words() % 4, 0);
    }

    /// Packing writes the page that quantizing says, and nothing else in it.
    #[test]
    fn packed_rows_read_back(layout in any_layout(), seed in any::<u32>()) {
        let (tokens, d, group) = (layout.config().page_tokens(), layout.head_dim(), layout.config().group_size());
        let x = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 20) as f32 / 256.0 - 8.0;
        let rows: Vec<f32> = (0..group * d).map(x).collect();
        let first = tokens - group;
        let mut page = vec![0; layout.page_words()];
        for side in SIDES {
            if side == Side::Key && layout.bits(side).is_quantized() {
                page::pack_keys(&layout, &mut page, first, &rows, 0);
                continue;
            }
            for (i, row) in rows.chunks_exact(d).enumerate() {
                if layout.bits(side).is_quantized() {
                    page::pack_value(&layout, &mut page, first + i, row);
                } else {
                    page::put_row(&layout, side, &mut page, first + i, row);
                }
            }
        }
        let mut row = vec![0.0; d];
        for side in SIDES {
            for token in 0..tokens {
                page::read_row(&layout, side, &page, token, &mut row);
                for (channel, &got) in row.iter().enumerate() {
                    if token < first {
                        prop_assert_eq!(got, 0.0);
                        continue;
                    }
                    let step = match layout.bits(side) {
                        Bits::B16 => 0.0,
                        bits => 16.1 / bits.max_code() as f32,
                    };
                    let expected = rows[(token - first) * d + channel];
                    prop_assert!((got - expected).abs() <= 0.51 * step + 0.01, "{:?} {} {}", side, token, channel);
                }
            }
        }
    }

    /// Full-precision rows come back as they were rounded.
    #[test]
    fn stored_rows_read_back(row in prop::collection::vec(-1e4_f32..1e4, 8..9)) {
        for dtype in KvDtype::ALL {
            let (mut words, mut back) = (vec![0; 8 * dtype.bytes() / 4], [0.0; 8]);
            page::store_row(dtype, &row, &mut words);
            page::load_row(dtype, &words, &mut back);
            prop_assert_eq!(back.to_vec(), row.iter().map(|&x| dtype.round(x)).collect::<Vec<_>>());
        }
    }

    /// The linear order holds what it was given, first code lowest.
    #[test]
    fn linear_order_reads_back(codes in prop::collection::vec(0..256_u32, 0..100), bits in 0..3_usize) {
        let bits = Bits::ALL[bits];
        let codes: Vec<u32> = codes.iter().map(|&code| code & bits.max_code()).collect();
        let mut words = vec![u32::MAX; linear::words(codes.len(), bits)];
        linear::pack(&codes, bits, &mut words);
        let mut back = vec![0; codes.len()];
        linear::unpack(&words, bits, &mut back);
        prop_assert_eq!(back, codes);
    }
}

/// The drawings of docs/format.md: channels of one word (values: of one unit), highest bits first.
#[test]
fn the_drawings_hold() {
    let channels = |bits, head_dim, side, word: usize, shifts: core::ops::Range<u32>| -> Vec<usize> {
        let layout = layout(bits, bits, GroupSize::G32, 1, head_dim);
        let elements = elements(&layout, side);
        let start = layout.codes_start(side);
        shifts.step_by(bits.get() as usize).rev().map(|shift| elements[&(start + word, shift)].1).collect()
    };
    let keys = |bits| channels(bits, 64, Side::Key, 0, 0..32);
    assert_eq!(keys(Bits::B2), [15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0]);
    assert_eq!(keys(Bits::B4), [7, 5, 3, 1, 6, 4, 2, 0]);
    assert_eq!(keys(Bits::B8), [3, 1, 2, 0]);
    let value = |bits, head_dim, word| channels(bits, head_dim, Side::Value, word, 0..16);
    assert_eq!(value(Bits::B2, 64, 0), [49, 48, 33, 32, 17, 16, 1, 0]);
    assert_eq!(value(Bits::B2, 64, 3), [55, 54, 39, 38, 23, 22, 7, 6]);
    assert_eq!(value(Bits::B2, 128, 1), [113, 112, 97, 96, 81, 80, 65, 64]);
    assert_eq!(value(Bits::B2, 80, 8), [71, 70, 69, 68, 67, 66, 65, 64]);
    assert_eq!((value(Bits::B4, 64, 0), value(Bits::B4, 64, 1)), (vec![17, 16, 1, 0], vec![49, 48, 33, 32]));
    assert_eq!((value(Bits::B8, 64, 0), value(Bits::B8, 64, 1)), (vec![1, 0], vec![17, 16]));
}

/// The element behind each field `(word, shift)` of a side.
fn elements(layout: &PageLayout, side: Side) -> HashMap<(usize, u32), (usize, usize)> {
    let tokens = 0..layout.config().page_tokens();
    let all = tokens.flat_map(|token| (0..layout.head_dim()).map(move |channel| (token, channel)));
    all.map(|(token, channel)| {
        let at = layout.code(side, token, channel);
        ((at.word, at.shift), (token, channel))
    })
    .collect()
}

/// `word & (2^b - 1) * 0x0001_0001 << b j` holds two codes that an MMA adds up together.
#[test]
fn a_mask_takes_what_is_contracted_together() {
    for bits in [Bits::B2, Bits::B4, Bits::B8] {
        for head_dim in [16, 64, 80, 96, 128, 256] {
            let layout = layout(bits, bits, GroupSize::G32, 1, head_dim);
            for side in SIDES {
                let elements = elements(&layout, side);
                for (&(word, shift), &(token, channel)) in
                    elements.iter().filter(|((_, shift), _)| *shift < 16)
                {
                    let (high_token, high_channel) = elements[&(word, shift + 16)];
                    match side {
                        // Two neighbouring channels of one token.
                        Side::Key => {
                            assert_eq!((high_token, high_channel), (token, channel + 1));
                            assert_eq!(channel % 2, 0);
                        }
                        // One channel of two neighbouring tokens.
                        Side::Value => {
                            assert_eq!((high_token, high_channel), (token + 1, channel));
                            assert_eq!(token % 2, 0);
                        }
                    }
                }
            }
        }
    }
}

/// Words of scales and of zeros hold those of the two codes that a mask takes.
#[test]
fn scales_pair_as_codes_do() {
    for head_dim in [16, 80, 128] {
        let layout = layout(Bits::B2, Bits::B2, GroupSize::G32, 2, head_dim);
        let groups = layout.value_groups();
        for token in (0..64).step_by(2) {
            for channel in (0..head_dim).step_by(2) {
                let key = layout.params_start(Side::Key) + token / 32 * head_dim + channel;
                let value = layout.params_start(Side::Value) + token * groups + channel / 32;
                for (side, word, zeros, other) in [
                    (Side::Key, key, 1, (token, channel + 1)),
                    (Side::Value, value, groups, (token + 1, channel)),
                ] {
                    for ((token, channel), shift) in [((token, channel), 0), (other, 16)] {
                        assert_eq!(layout.scale(side, token, channel), CodeAt { word, shift });
                        assert_eq!(layout.zero(side, token, channel), CodeAt { word: word + zeros, shift });
                    }
                }
            }
        }
    }
}

/// Field `j` of the same word of each of the 8 lanes is one tile of 16 channels, and so in one value group.
#[test]
fn lanes_share_a_value_group() {
    for bits in [Bits::B2, Bits::B4, Bits::B8] {
        for head_dim in [64, 128, 256] {
            let layout = layout(bits, bits, GroupSize::G32, 1, head_dim);
            let elements = elements(&layout, Side::Value);
            let pair_words = 2 * layout.token_words(Side::Value);
            let per_lane = pair_words / 8;
            for pair in 0..16 {
                for word in 0..per_lane {
                    for shift in (0..16).step_by(bits.get() as usize) {
                        let first = layout.codes_start(Side::Value) + pair * pair_words + word;
                        let channel = |lane: usize| elements[&(first + lane * per_lane, shift)].1;
                        let tile = channel(0) / 16;
                        assert!(
                            (0..8).all(|lane| channel(lane) / 16 == tile && channel(lane) % 16 / 2 == lane)
                        );
                    }
                }
            }
        }
    }
}

/// A token's codes, scales and zeros are whole 16-bit units: writing one value never touches another token's bits.
#[test]
fn a_value_is_whole_half_words() {
    let layout = layout(Bits::B2, Bits::B2, GroupSize::G32, 1, 64);
    let row = vec![1.0_f32; 64];
    let mut page = vec![u32::MAX; layout.page_words()];
    page::pack_value(&layout, &mut page, 5, &row);
    for token in [4, 6] {
        for channel in 0..64 {
            let at = layout.code(Side::Value, token, channel);
            assert_eq!(page[at.word] >> at.shift & 3, 3);
            for at in [layout.scale(Side::Value, token, channel), layout.zero(Side::Value, token, channel)] {
                assert_eq!(page[at.word] >> at.shift & 0xffff, 0xffff);
            }
        }
    }
}

/// Sinks are stored elsewhere: they do not count for scales, and their codes are 0.
#[test]
fn sinks_do_not_count() {
    let layout = layout(Bits::B2, Bits::B2, GroupSize::G32, 1, 16);
    let rows = |sink: f32| -> Vec<f32> {
        (0..32 * 16).map(|i| if i < 48 { sink } else { (i % 7) as f32 }).collect()
    };
    let pack = |rows: &[f32], skip| {
        let mut page = vec![0; layout.page_words()];
        page::pack_keys(&layout, &mut page, 0, rows, skip);
        page
    };
    assert_eq!(pack(&rows(1e4), 3), pack(&rows(-5.0), 3));
    assert_ne!(pack(&rows(1e4), 2), pack(&rows(-5.0), 2));
    let page = pack(&rows(1e4), 3);
    assert!((0..48).all(|i| {
        let at = layout.code(Side::Key, i / 16, i % 16);
        page[at.word] >> at.shift & 3 == 0
    }));
    assert!(pack(&rows(1.0), 32).iter().all(|&word| word == 0));
}
