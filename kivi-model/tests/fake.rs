//! Fake quantization: that of KIVI's axes is the real cache, that of the others is what its definition says.

mod models;
mod random;

use kivi_kernels_ref::Cpu;
use kivi_model::engine::{Engine, Event};
use kivi_model::fake::{Axis, FakeCache, FakeQuantizer};
use kivi_model::model::Model;
use kivi_model::perplexity::{Cut, Scores, Setting, compare};
use kivi_model::policy::CachePolicy;
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype, PageLayout, Side, group, page};
use models::{cache, config, golden, ids, kivi_tiny, request};
use random::{SMALL, Small, load, noise, tokens, weight};
use serde_json::{Value, json};

const AXES: [Axis; 2] = [Axis::Channel, Axis::Token];

/// Widths of keys and values, group size, residual length; rows in f32.
fn settings(k_bits: Bits, v_bits: Bits, group_size: GroupSize, residual: usize) -> KiviConfig {
    let config = KiviConfig::new(k_bits, v_bits, group_size, residual).expect("a valid cache");
    config.with_kv_dtype(KvDtype::F32)
}

fn fake(config: KiviConfig, k_axis: Axis, v_axis: Axis) -> FakeCache {
    FakeCache { policy: config.into(), k_axis, v_axis }
}

/// Each policy gives the same predictions over the real cache and over the fake one, but for codes that fall the other way
/// where rounding differs; and these are not those of 16 bits.
fn assert_same(
    model: &Model<Cpu<f32>>,
    policies: &[CachePolicy],
    (cut, windows): (Cut, &[Vec<u32>]),
    limit: f64,
) {
    let backend = Cpu::<f32>::new();
    let both = |policy: &CachePolicy| [policy.clone().into(), FakeCache::from(policy.clone()).into()];
    let full = CachePolicy::from(cache(16, 16)).into();
    let settings: Vec<Setting> = std::iter::once(full).chain(policies.iter().flat_map(both)).collect();
    let scores = compare(&backend, model, &settings, (cut, windows), 3, &mut |_| {}).expect("scores");
    let apart = |a: &Scores, b: &Scores| {
        let apart = a.nll.iter().zip(&b.nll).map(|(a, b)| (a - b).abs());
        apart.sum::<f64>() / a.nll.len() as f64
    };
    for (policy, pair) in policies.iter().zip(scores[1..].chunks(2)) {
        let mean = (pair[0].mean_nll().0 - pair[1].mean_nll().0).abs();
        let (each, full) = (apart(&pair[0], &pair[1]), apart(&pair[0], &scores[0]));
        println!("{}: {mean:.1e} of the mean, {each:.1e} of each, {full:.1e} from 16 bits", policy.base());
        assert!(mean <= limit && each <= 0.05 * full, "{policy:?}: {mean} {each} {full}");
    }
}

#[test]
fn predictions_are_those_of_the_real_cache() {
    use Bits::{B2, B4, B8, B16};
    let (g32, g64) = (GroupSize::G32, GroupSize::G64);
    let base = settings(B2, B2, g32, 32);
    let policies = [
        base.into(),
        settings(B4, B2, g32, 64).into(),
        settings(B8, B16, g64, 64).into(),
        settings(B2, B4, g64, 128).into(),
        base.with_sink_tokens(5).expect("sinks").into(),
        base.with_sink_tokens(40).expect("sinks").into(),
        CachePolicy::from(base).with_layer(1, base.with_bits(B16, B16)),
    ];
    let backend = Cpu::<f32>::new();
    let cut = Cut { ctx_size: 300, stride: 150 };
    // Heads of 16 and 80 channels: shorter than a group, and with a shorter group at the end.
    for head_dim in [16, 80] {
        let small = Small { head_dim, ..SMALL };
        let windows: Vec<_> = (0..2).map(|i| tokens(&format!("window {i}"), 300, small.vocab)).collect();
        // Noise makes much of a code that falls the other way.
        assert_same(&small.load(&backend), &policies, (cut, &windows), 1e-3);
    }
    let windows = &cut.windows(&[0], &text())[..2];
    assert_same(&kivi_tiny(&backend), &policies[..5], (cut, windows), 1e-4);
}

/// Where pages leave a window, what is due may have left: the last tokens of a page, under a window shorter than the residual one.
#[test]
fn pages_that_left_a_window_are_passed_over() {
    let dir = SMALL.write(&weight);
    let file = dir.path().join("config.json");
    let mut model: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    model["architectures"] = json!(["MistralForCausalLM"]);
    model["model_type"] = json!("mistral");
    model["sliding_window"] = json!(40);
    std::fs::write(&file, model.to_string()).expect("a file");
    let two = settings(Bits::B2, Bits::B2, GroupSize::G32, 128);
    let four = settings(Bits::B4, Bits::B4, GroupSize::G32, 32);
    let windows = [tokens("window", 500, SMALL.vocab)];
    let model = load(&Cpu::<f32>::new(), dir.path());
    let cut = Cut { ctx_size: 500, stride: 400 };
    assert_same(&model, &[two.into(), four.into()], (cut, &windows), 1e-3);
}

/// The text of a golden file.
fn text() -> Vec<u32> {
    let golden = golden("kivi-nll.json");
    let documents = golden["documents"].as_array().expect("documents").iter();
    documents.flat_map(|document| ids(&document["ids"]).split_off(1)).collect()
}

#[test]
fn keys_per_token_are_worse_on_kivi_tiny() {
    let backend = Cpu::<f32>::new();
    let model = kivi_tiny(&backend);
    let cut = Cut { ctx_size: 768, stride: 256 };
    let windows = &cut.windows(&[0], &text())[..4];
    let pairs = AXES.iter().flat_map(|k| AXES.map(|v| fake(cache(2, 2), *k, v)));
    let settings: Vec<Setting> = std::iter::once(cache(16, 16))
        .map(|full| CachePolicy::from(full).into())
        .chain(pairs.map(Setting::from))
        .collect();
    let scores = compare(&backend, &model, &settings, (cut, windows), 4, &mut |_| {}).expect("scores");
    let figures = |scores: &Scores| (scores.mean_nll().0, scores.mean_kld().0);
    let found: Vec<_> = scores.iter().map(figures).collect();
    println!("{found:.4?}");
    for per_channel in &found[1..3] {
        for per_token in &found[3..5] {
            assert!(per_token.0 > per_channel.0 + 0.003, "{found:?}");
            assert!(per_token.1 > 2.0 * per_channel.1, "{found:?}");
        }
    }
}

/// Rows `[n][head_dim]` with a channel that has large values.
fn rows(n: usize, head_dim: usize) -> Vec<f32> {
    let value = |i: usize| {
        let x = (noise("rows", i as u64) >> 40) as f32 / (1 << 24) as f32 - 0.5;
        if i % head_dim == 3 { 20.0 * x + 7.0 } else { x }
    };
    (0..n * head_dim).map(value).collect()
}

/// The members of the group of element (token, channel), written out.
fn members(
    axis: Axis,
    (token, channel): (usize, usize),
    size: usize,
    (sinks, n, head_dim): (usize, usize, usize),
) -> Vec<(usize, usize)> {
    let all = |of: usize, from: usize, end: usize| {
        let start = of / size * size;
        start.max(from)..(start + size).min(end)
    };
    match axis {
        Axis::Channel => all(token, sinks, n).map(|t| (t, channel)).collect(),
        Axis::Token => all(channel, 0, head_dim).map(|c| (token, c)).collect(),
    }
}

/// Tokens from `sinks` to `n` quantized element by element: the scale and zero of the element's group, its code, and back.
fn by_definition(
    axis: Axis,
    bits: Bits,
    size: usize,
    x: &[f32],
    (sinks, n, head_dim): (usize, usize, usize),
) -> Vec<f32> {
    let mut out = x.to_vec();
    for (token, channel) in (sinks..n).flat_map(|t| (0..head_dim).map(move |c| (t, c))) {
        let group = members(axis, (token, channel), size, (sinks, n, head_dim));
        let values = group.iter().map(|(t, c)| x[t * head_dim + c]);
        let params = group::params(values, bits);
        let i = token * head_dim + channel;
        out[i] = params.dequantize(params.quantize(x[i], bits));
        let scale = params.scale.to_f32();
        assert!((out[i] - x[i]).abs() <= 0.51 * scale, "{axis}: {} from {}, scale {scale}", out[i], x[i]);
    }
    out
}

#[test]
fn each_axis_is_its_definition() {
    for (bits, size) in
        [Bits::B2, Bits::B4, Bits::B8].into_iter().flat_map(|b| GroupSize::ALL.map(|g| (b, g)))
    {
        for (axis, side) in AXES.into_iter().flat_map(|axis| [(axis, Side::Key), (axis, Side::Value)]) {
            // A head with a shorter group at its end, whole groups of tokens, sinks that end within one.
            let (n, head_dim, sinks) = (256, 80, 5);
            let x = rows(n, head_dim);
            let cache = fake(settings(bits, bits, size, 128), axis, axis);
            let mut found = x.clone();
            cache.apply(0, side, sinks, &mut found[sinks * head_dim..], head_dim);
            assert!(
                found == by_definition(axis, bits, size.get(), &x, (sinks, n, head_dim)),
                "{axis} {side:?} {bits}"
            );
        }
    }
}

/// Per channel, an outlier channel does not touch the others; per token it does.
#[test]
fn outlier_channels_spoil_groups_of_a_token_only() {
    let head_dim = 64;
    let x = rows(32, head_dim);
    let error = |axis| {
        let mut y = x.clone();
        fake(cache(2, 2), axis, axis).apply(0, Side::Key, 0, &mut y, head_dim);
        let others = x.iter().zip(&y).enumerate().filter(|(i, _)| i % head_dim != 3 && i % head_dim < 32);
        others.map(|(_, (x, y))| (x - y).abs()).fold(0.0, f32::max)
    };
    assert!(error(Axis::Channel) < 0.18, "{}", error(Axis::Channel));
    assert!(error(Axis::Token) > 0.4, "{}", error(Axis::Token));
}

#[test]
fn due_is_what_kivi_packs() {
    for (size, residual) in
        [(GroupSize::G32, 32), (GroupSize::G32, 96), (GroupSize::G64, 128), (GroupSize::G128, 128)]
    {
        let config = settings(Bits::B2, Bits::B4, size, residual);
        for len in 0..3 * residual + 2 * size.get() {
            let packed = config.packed(len);
            for (k, v) in AXES.into_iter().flat_map(|k| AXES.map(|v| (k, v))) {
                let cache = fake(config, k, v);
                let values = if v == Axis::Token { packed.v } else { packed.v / size.get() * size.get() };
                let due = [Side::Key, Side::Value].map(|side| cache.quantized(0, side, len));
                assert_eq!(due, [packed.k, values], "{config} {k} {v} {len}");
            }
            let full = fake(config.with_bits(Bits::B16, Bits::B16), Axis::Token, Axis::Channel);
            assert_eq!([Side::Key, Side::Value].map(|side| full.quantized(0, side, len)), [0, 0]);
        }
    }
}

/// The rows of layer 0 after a prompt that is read `chunk` tokens a step: `[head][token][channel]` of keys and of values.
fn first_layer(
    model: &Model<Cpu<f32>>,
    cache: &FakeCache,
    prompt: &[u32],
    chunk: usize,
) -> [Vec<Vec<f32>>; 2] {
    let backend = Cpu::<f32>::new();
    let full = *cache.engine_cache().base();
    let mut sizes = config(full, prompt.len() + 128, 1);
    sizes.max_batched_tokens = chunk;
    let mut engine = Engine::new(&backend, model, sizes).expect("an engine");
    let mut quantizer = FakeQuantizer::new(cache.clone());
    let id = engine.submit(request(prompt, 2)).expect("a good request");
    loop {
        let events = engine.step().expect("the CPU does not fail");
        quantizer.update(&mut engine, &[id]).expect("the CPU does not fail");
        if events.iter().any(|event| matches!(event, Event::Token { .. })) {
            break;
        }
    }
    let state = engine.cache_state(id).expect("the CPU does not fail").expect("it runs");
    let layout = PageLayout::new(full, SMALL.head_dim).expect("a layout");
    let (heads, words) = (SMALL.heads / 2, layout.page_words());
    let row = |side, head: usize, token: usize| {
        let page = (token / full.page_tokens() * heads + head) * words;
        let mut row = vec![0.0; SMALL.head_dim];
        page::read_row(
            &layout,
            side,
            &state.layers[0].pages[page..page + words],
            token % full.page_tokens(),
            &mut row,
        );
        row
    };
    [Side::Key, Side::Value].map(|side| {
        (0..heads).map(|head| (0..prompt.len()).flat_map(|t| row(side, head, t)).collect()).collect()
    })
}

/// However a prompt is cut, the first layer, whose rows do not depend on what is attended to, is the definition applied to the rows of an
/// exact cache.
#[test]
fn pages_do_not_depend_on_how_a_prompt_is_cut() {
    let backend = Cpu::<f32>::new();
    let model = SMALL.load(&backend);
    let prompt = tokens("prompt", 300, SMALL.vocab);
    let head_dim = SMALL.head_dim;
    let two = settings(Bits::B2, Bits::B4, GroupSize::G32, 96).with_sink_tokens(5).expect("sinks");
    let full = fake(two.with_bits(Bits::B16, Bits::B16), Axis::Channel, Axis::Token);
    let exact = [1, 37, 128, 300].map(|chunk| (chunk, first_layer(&model, &full, &prompt, chunk)));
    for (k, v) in AXES.into_iter().flat_map(|k| AXES.map(|v| (k, v))) {
        let cache = fake(two, k, v);
        for (chunk, exact) in &exact {
            let found = first_layer(&model, &cache, &prompt, *chunk);
            // 288 keys; 204 values, of which 192 make whole groups.
            let due = [288, if v == Axis::Token { 204 } else { 192 }];
            for (side, (axis, bits)) in [(k, Bits::B2), (v, Bits::B4)].into_iter().enumerate() {
                for (head, (found, exact)) in found[side].iter().zip(&exact[side]).enumerate() {
                    let want = by_definition(axis, bits, 32, exact, (5, due[side], head_dim));
                    assert!(
                        *found == want,
                        "keys per {k}, values per {v}, chunks of {chunk}, side {side}, head {head}"
                    );
                }
            }
        }
    }
}
