//! What is packed when, and how many bytes it takes: the method's tables.

use kivi_quant::{Bits, CacheBytes, GroupSize, KiviConfig, KvDtype, PageLayout, Side};

fn config(bits: Bits, group_size: usize, residual: usize) -> KiviConfig {
    KiviConfig::new(bits, bits, GroupSize::try_from(group_size).unwrap(), residual).unwrap()
}

fn layout(bits: Bits, group_size: usize, residual: usize, head_dim: usize) -> PageLayout {
    PageLayout::new(config(bits, group_size, residual), head_dim).unwrap()
}

#[test]
fn bytes_of_a_quantized_token() {
    let rows = [
        (128, Bits::B2, [48, 40, 36]),
        (128, Bits::B4, [80, 72, 68]),
        (128, Bits::B8, [144, 136, 132]),
        (64, Bits::B2, [24, 20, 20]),
        (64, Bits::B4, [40, 36, 36]),
    ];
    for (head_dim, bits, expected) in rows {
        for (group, expected) in GroupSize::ALL.into_iter().zip(expected) {
            let layout = layout(bits, group.get(), 128, head_dim);
            let token = |side| 4 * layout.token_words(side) + 4 * layout.params_words(side) / 128;
            // A group of 128 does not fit a head of 64: its values have one shorter group, its keys half a word.
            let key = if group.get() > head_dim { expected - 2 } else { expected };
            assert_eq!(
                (token(Side::Key), token(Side::Value)),
                (key, expected),
                "{head_dim} {bits} {group:?}"
            );
        }
    }
}

#[test]
fn kib_of_a_token_of_a_model() {
    let models = [
        (32 * 32, 128, [512.0, 96.0, 160.0]),
        (40 * 40, 128, [800.0, 150.0, 250.0]),
        (32 * 8, 128, [128.0, 24.0, 40.0]),
        (16 * 8, 64, [32.0, 6.0, 10.0]),
        (28 * 4, 128, [56.0, 10.5, 17.5]),
        (32, 64, [8.0, 1.5, 2.5]),
    ];
    for (heads, head_dim, expected) in models {
        // From R tokens on a token adds to what is packed alone: two lengths differ by that.
        let per_token = |bits| {
            let bytes = |len| CacheBytes::of_head(&layout(bits, 32, 32, head_dim), len).times(heads).used();
            (bytes(2048) - bytes(1024)) as f64 / 1024.0 / 1024.0
        };
        assert_eq!([Bits::B16, Bits::B2, Bits::B4].map(per_token), expected);
    }
}

#[test]
fn mib_of_llama_2_7b() {
    let rows = [
        (498, 249.0, [56.84, 95.84, 86.41, 119.41]),
        (4096, 2048.0, [390.50, 410.00, 645.50, 662.00]),
        (8192, 4096.0, [774.50, 794.00, 1285.50, 1302.00]),
        (32768, 16384.0, [3078.50, 3098.00, 5125.50, 5142.00]),
        (131_072, 65536.0, [12294.50, 12314.00, 20485.50, 20502.00]),
    ];
    let settings = [(Bits::B2, 32), (Bits::B2, 128), (Bits::B4, 32), (Bits::B4, 128)];
    for (len, fp16, expected) in rows {
        for ((bits, residual), expected) in settings.into_iter().zip(expected) {
            let bytes = CacheBytes::of_head(&layout(bits, 32, residual, 128), len).times(1024);
            let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
            assert_eq!(mib(bytes.fp16), fp16);
            assert!(
                (mib(bytes.used()) - expected).abs() < 0.006,
                "{len} {bits} {residual}: {}",
                mib(bytes.used())
            );
        }
    }
}

#[test]
fn packed_counts() {
    // (prompt, steps, packed keys, packed values), R = 128.
    let rows = [
        (1, 0, 0, 0),
        (1, 1, 0, 0),
        (1, 127, 128, 0),
        (1, 128, 128, 1),
        (100, 0, 0, 0),
        (100, 1, 0, 0),
        (100, 28, 128, 0),
        (127, 0, 0, 0),
        (127, 1, 128, 0),
        (128, 0, 128, 0),
        (128, 1, 128, 1),
        (128, 128, 256, 128),
        (129, 0, 128, 1),
        (129, 1, 128, 2),
        (200, 0, 128, 72),
        (200, 1, 128, 73),
        (200, 56, 256, 128),
        (256, 0, 256, 128),
        (256, 1, 256, 129),
        (1000, 0, 896, 872),
        (1000, 1, 896, 873),
        (1000, 24, 1024, 896),
    ];
    for (n, steps, k, v) in rows {
        let packed = config(Bits::B2, 32, 128).packed(n + steps);
        assert_eq!((packed.k, packed.v), (k, v), "{n} + {steps}");
    }
    let baseline = config(Bits::B16, 32, 128).packed(77);
    assert_eq!((baseline.k, baseline.v), (77, 77));
}

/// The authors' code as a state machine: a prompt, then single tokens.
#[test]
fn packed_counts_are_the_original_loops() {
    for r in [32_usize, 64, 96, 128] {
        for n in 0..4 * r + 2 {
            let (mut k, mut k_full) = (n - n % r, n % r);
            let (mut v, mut v_full) = (n.saturating_sub(r), n.min(r));
            for len in n..n + 2 * r {
                let packed = config(Bits::B4, 32, r).packed(len);
                assert_eq!((packed.k, packed.v), (k, v), "R {r}, prompt {n}, length {len}");
                assert_eq!((len - packed.k, len - packed.v), (k_full, v_full));
                (k_full, v_full) = (k_full + 1, v_full + 1);
                if k_full == r {
                    (k, k_full) = (k + r, 0);
                }
                if v_full > r {
                    (v, v_full) = (v + 1, v_full - 1);
                }
            }
        }
    }
}

/// Bytes that the packed tokens of one head touch, counted code by code.
fn counted(layout: &PageLayout, side: Side, packed: usize) -> usize {
    let page_tokens = layout.config().page_tokens();
    let (mut bits, mut params) = (0, 0);
    for start in (0..packed).step_by(page_tokens) {
        let mut seen = vec![[false; 2]; layout.page_words()];
        for token in 0..(packed - start).min(page_tokens) {
            for channel in 0..layout.head_dim() {
                bits += layout.bits(side).get() as usize;
                for at in [layout.scale(side, token, channel), layout.zero(side, token, channel)] {
                    seen[at.word][at.shift as usize / 16] = true;
                }
            }
        }
        params += seen.as_flattened().iter().filter(|&&seen| seen).count();
    }
    bits / 8 + 2 * params
}

#[test]
fn accounting_is_what_the_layout_says() {
    for bits in [Bits::B2, Bits::B4, Bits::B8] {
        for group in [32, 64, 128] {
            for r in [32, 96, 128, 256].into_iter().filter(|r| r % group == 0) {
                for head_dim in [64, 80, 128] {
                    let layout = layout(bits, group, r, head_dim);
                    for len in [0, 1, r - 1, r, r + 1, 2 * r - 1, 2 * r, 2 * r + 1, 3 * r + 7] {
                        check_bytes(&layout, len);
                    }
                }
            }
        }
    }
}

fn check_bytes(layout: &PageLayout, len: usize) {
    let bytes = CacheBytes::of_head(layout, len);
    let (packed, d) = (layout.config().packed(len), layout.head_dim());
    let (b, g, r) = (
        layout.config().k_bits().get() as usize,
        layout.config().group_size(),
        layout.config().residual_length(),
    );
    assert_eq!(bytes.codes, (packed.k + packed.v) * d * b / 8);
    assert_eq!(bytes.scales, packed.k / g * 4 * d + packed.v * 4 * d.div_ceil(g));
    assert_eq!(bytes.residual, (2 * len - packed.k - packed.v) * 2 * d);
    assert_eq!(bytes.fp16, 4 * d * len);
    let counted = counted(layout, Side::Key, packed.k) + counted(layout, Side::Value, packed.v);
    assert_eq!(bytes.codes + bytes.scales, counted, "{layout:?} {len}");
    let pages = packed.k.max(packed.v).div_ceil(128);
    assert_eq!(CacheBytes::allocated_by_head(layout, len), pages * layout.page_bytes() + 2 * r * 2 * d);
    assert!(bytes.used() <= CacheBytes::allocated_by_head(layout, len));
}

#[test]
fn a_page_is_the_size_that_the_design_says() {
    let layout = layout(Bits::B2, 32, 128, 128);
    assert_eq!(layout.page_bytes(), 4096 + 2048 + 4096 + 2048);
    let f32_rows = PageLayout::new(config(Bits::B16, 32, 32).with_kv_dtype(KvDtype::F32), 64).unwrap();
    assert_eq!(f32_rows.page_bytes(), 2 * 128 * 64 * 4);
}

#[test]
fn bits_per_element_count_everything() {
    assert_eq!(CacheBytes::default().bits_per_element(), 0.0);
    let bytes = CacheBytes::of_head(&layout(Bits::B16, 32, 32, 64), 100);
    assert_eq!(bytes.bits_per_element(), 16.0);
    let mut sum = CacheBytes::default();
    sum += bytes;
    assert_eq!(sum + bytes, bytes.times(2));
}

#[test]
fn bad_settings_say_what_is_allowed() {
    let message = |error: kivi_quant::ConfigError| error.to_string();
    let g32 = GroupSize::G32;
    assert_eq!(message(Bits::try_from(3).unwrap_err()), "cache bits: expected 2, 4, 8 or 16, found 3");
    let error = GroupSize::try_from(48).unwrap_err();
    assert_eq!(message(error), "cache group size: expected 32, 64 or 128, found 48");
    for residual in [0, 33, 1 << 17] {
        let error = message(KiviConfig::new(Bits::B2, Bits::B2, g32, residual).unwrap_err());
        assert!(error.contains("a multiple of the group size 32 from 32 to 65536"), "{error}");
        assert!(error.ends_with(&format!("found {residual}")), "{error}");
    }
    for page in [0, 100] {
        let error = message(config(Bits::B2, 64, 64).with_page_tokens(page).unwrap_err());
        assert!(error.contains("multiple of the group size 64"), "{error}");
    }
    assert!(config(Bits::B2, 32, 32).with_sink_tokens(1 << 20).is_err());
    for head_dim in [0, 8, 72, 528] {
        let error = message(PageLayout::new(config(Bits::B2, 32, 32), head_dim).unwrap_err());
        assert!(error.contains("a multiple of 16"), "{error}");
    }
}
