//! Every kind with usual and with awkward results: all text is inside the picture, and none over other text.

use serde_json::{Value, json};

use super::drawing::Drawing;
use super::input::Input;
use super::{applicable, choose, draw};
use crate::args::PlotKind;

const LONG: &str = "organisation/a-model-with-a-very-long-name-that-nobody-wants-to-type-Instruct-v0.2-of-the-year-and-more-of-it";

fn input(value: Value) -> Input {
    Input::new("result.json".into(), value).expect("a result")
}

/// A row of `bench`: bits, batch size, depth.
fn row(bits: u32, batch_size: u64, depth: u64, times: f64) -> Value {
    let part = times * batch_size as f64 * (depth + 100) as f64 * f64::from(bits);
    let part = part.min(1e18) as u64;
    json!({
        "test": format!("tg8 @ d{depth}"), "n_prompt": 0, "n_gen": 8, "batch_size": batch_size, "depth": depth,
        "cache": {"k_bits": bits, "v_bits": bits, "group_size": 32, "residual_length": 128, "kv_dtype": "f16",
                  "page_tokens": 128},
        "samples": [], "tokens_per_second": 1e3 * times / f64::from(bits), "spread_percent": 1.0,
        "prompt_tokens_per_second": null, "steps": {"count": 8, "median_ms": times * f64::from(bits), "p90_ms": 2.0},
        "decode_tokens_per_second": 10.0, "over_baseline": null,
        "over_16_bits": if bits == 16 { Value::Null } else { json!(if depth > 1000 { 1.5 } else { 0.5 }) },
        "memory": {"weights": 1_u64 << 30, "pages": part, "rings": 0, "workspace": 1000, "other": 0,
                   "sum": part + (1 << 30) + 1000, "device": null, "device_over_sum_percent": null},
    })
}

fn bench(model: &str, rows: Vec<Value>) -> Input {
    input(json!({
        "command": "bench", "version": "0", "commit": null, "date": "", "command_line": [], "model": model,
        "random_weights": false, "device": "cpu", "dtype": "f32", "device_bytes": null, "driver": null, "nvrtc": null,
        "cpu": "", "threads": 1,
        "shape": {"hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1,
                  "num_key_value_heads": 1, "head_dim": 1, "vocab_size": 1, "max_position_embeddings": 1},
        "settings": {"repetitions": 1, "warm_up": true, "max_num_batched_tokens": 1, "memory": null},
        "rows": rows,
    }))
}

fn eval(cache: &str, lengths: impl Iterator<Item = u64>, depths: u64) -> Input {
    let of = |length: u64| {
        let depth = |i: u64| ((1000 * i / depths).to_string(), json!([i % 3, 2 + i % 2]));
        json!({"length": length, "depths": (0..depths).map(depth).collect::<serde_json::Map<_, _>>()})
    };
    input(json!({"command": "eval", "task": "needle", "model": LONG, "cache": cache,
                 "lengths": lengths.map(of).collect::<Vec<_>>()}))
}

fn perplexity(settings: usize, klds: &[f64]) -> Input {
    let places: Vec<_> = klds.iter().enumerate().map(|(i, kld)| json!([1024 + 32 * i, kld])).collect();
    let setting = |i| json!({"cache": format!("K2 V2 g32 R{i}"), "kld_by_position": places});
    input(
        json!({"command": "perplexity", "model": LONG, "file": "/some/where/text.txt", "ctx_size": 2048, "windows": 3,
                 "settings": (0..settings).map(setting).collect::<Vec<_>>()}),
    )
}

fn ablate(names: &[&str], kld: f64) -> Input {
    let setting = |(i, name): (usize, &&str)| {
        json!({"name": name, "perplexity": 5.0 + i as f64, "perplexity_error": 0.1, "mean_kld": kld * i as f64,
               "mean_kld_error": kld / 10.0, "same_top": 0.9, "passkey": []})
    };
    input(
        json!({"command": "ablate", "model": "m", "settings": names.iter().enumerate().map(setting).collect::<Vec<_>>()}),
    )
}

fn kv(layers: usize, tokens: usize, channels: usize, most: f64) -> Input {
    let rows: Vec<Vec<f64>> = (0..tokens)
        .map(|t| (0..channels).map(|c| most * ((t * 7 + c * 3) % 11) as f64 / 10.0).collect())
        .collect();
    let layer = |layer: usize| {
        json!({"layer": layer, "tokens": (0..tokens).map(|t| 5 * t).collect::<Vec<_>>(), "heads": [],
               "key": {"magnitudes": rows}, "value": {"magnitudes": rows}})
    };
    input(
        json!({"command": "inspect --kv", "model": LONG, "prompt": "prompt 1", "prompt_tokens": tokens, "head": 0,
                 "layers": (0..layers).map(layer).collect::<Vec<_>>()}),
    )
}

fn inspect(tokens: &[u64], bytes: u64) -> Input {
    let of = |n: &u64| json!({"tokens": n, "used_bytes": [[16, n * bytes], [2, n * bytes / 5]]});
    input(json!({"command": "inspect", "model": LONG, "kv_cache": {"batch_size": 1, "group_size": 32,
                 "residual_length": 128, "by_tokens": tokens.iter().map(of).collect::<Vec<_>>()}}))
}

#[track_caller]
fn drawn(kind: PlotKind, inputs: &[Input]) -> Drawing {
    let drawing = draw(kind, inputs).unwrap_or_else(|error| panic!("{kind}: {error:#}"));
    let faults = drawing.faults();
    assert!(faults.is_empty(), "{kind}: {faults:#?}");
    drawing
}

fn says(drawing: &Drawing, text: &str) -> bool {
    // Notes are cut into lines.
    drawing.texts().map(|text| text.text.as_str()).collect::<Vec<_>>().join(" ").contains(text)
}

fn rows(bits: &[u32], batches: &[u64], depths: &[u64], times: f64) -> Vec<Value> {
    let each = |f: &dyn Fn(u64, u64) -> Vec<Value>| {
        batches.iter().flat_map(|batch| depths.iter().flat_map(move |depth| f(*batch, *depth))).collect()
    };
    each(&|batch, depth| bits.iter().map(|bits| row(*bits, batch, depth, times)).collect())
}

const OF_BENCH: [PlotKind; 4] =
    [PlotKind::MemoryContext, PlotKind::MemoryBatch, PlotKind::ThroughputBatch, PlotKind::StepTime];

#[test]
fn bench_is_drawn_whatever_it_has() {
    for kind in OF_BENCH {
        for (bits, batches, depths, times) in [
            (&[16, 4, 2][..], &[1, 8, 64, 1024][..], &[0, 4096, 131_072][..], 1.0),
            (&[16], &[1], &[0], 1.0),
            (&[16, 2], &[3], &[0], 1e-9),
            (&[2], &[1, 2], &[1 << 40], 1e12),
            (&[16, 8], &[65_536], &[0, 1], 0.0),
        ] {
            let drawing = drawn(kind, &[bench(LONG, rows(bits, batches, depths, times))]);
            assert!(drawing.texts().any(|text| text.text == "16 bits") == bits.contains(&16), "the legend");
            assert!(drawing.height < 1500.0);
        }
    }
}

#[test]
fn axes_have_units_and_marks_their_meaning() {
    let inputs = [bench("tiny", rows(&[16, 2], &[1, 4], &[0, 512, 4096], 1.0))];
    let memory = drawn(PlotKind::MemoryContext, &inputs);
    for text in ["memory (GiB)", "context (tokens)", "tiny, on cpu (f32), batch 4", "K2 V2 g32 R128"] {
        assert!(says(&memory, text), "{text}");
    }
    let steps = drawn(PlotKind::StepTime, &inputs);
    for text in ["median step (ms)", "tokens in the cache", "batch 1", "at batch 4 from 4,096 tokens on"] {
        assert!(says(&steps, text), "{text}");
    }
    let speed = drawn(PlotKind::ThroughputBatch, &inputs);
    for text in ["tokens a second", "batch (sequences)", "peak memory", "tg8 @ d4096"] {
        assert!(says(&speed, text), "{text}");
    }
    let again = [bench("tiny", rows(&[4], &[1, 4], &[512], 1.0))];
    assert!(!says(&drawn(PlotKind::MemoryBatch, &again), "16 bits"));
}

#[test]
fn several_results_of_bench_are_one() {
    let part = |bits| bench("tiny", rows(&[bits], &[1, 2, 4], &[0], 1.0));
    let both = drawn(PlotKind::MemoryBatch, &[part(16), part(2)]);
    assert!(says(&both, "16 bits") && says(&both, "K2 V2 g32 R128"));
    let other = bench("other", rows(&[2], &[1], &[0], 1.0));
    let error = format!("{:#}", draw(PlotKind::MemoryBatch, &[part(16), other]).unwrap_err());
    assert!(error.contains("is of other on cpu, expected tiny on cpu"), "{error}");
}

#[test]
fn grids_of_any_size() {
    for (lengths, depths, panels) in [(1, 1, 1), (4, 10, 2), (50, 100, 3), (200, 200, 1), (13, 2, 12)] {
        let one =
            |i: u64| eval(if i == 0 { "16 bits" } else { LONG }, (1..=lengths).map(|n| n * 125_000), depths);
        let inputs: Vec<Input> = (0..panels).map(one).collect();
        let drawing = drawn(PlotKind::Heat, &inputs);
        assert!(says(&drawing, "length of the prompt (tokens)") && says(&drawing, "place in the text (%)"));
        assert!(says(&drawing, "needle"));
    }
    let cells = drawn(PlotKind::Heat, &[eval("16 bits", [500, 2000].into_iter(), 3)]);
    assert_eq!(cells.texts().filter(|text| text.text == "0/2").count(), 2);
    assert_eq!(cells.texts().filter(|text| text.text == "1/3" || text.text == "2/2").count(), 4);
}

#[test]
fn divergences_of_any_size() {
    for klds in [&[1e-6, 1.0, 0.03][..], &[0.5], &[0.0, 1e-9, 0.0], &[1e90, 1e-90], &[0.1, 0.1]] {
        for settings in [1, 4, 28] {
            let drawing = drawn(PlotKind::KldPosition, &[perplexity(settings, klds)]);
            assert!(says(&drawing, "mean KL divergence (nats)") && says(&drawing, "text.txt"));
        }
    }
    let two = [perplexity(2, &[0.1, 0.2]), perplexity(1, &[0.1, 0.2])];
    assert!(says(&drawn(PlotKind::KldPosition, &two), "result: K2 V2 g32 R0"));
}

#[test]
fn bars_of_any_size() {
    let many: Vec<String> = (0..201).map(|i| format!("{LONG} {i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for names in [&["16 bits", "2"][..], &["16 bits", "keys per token, values per channel", "", LONG], &many]
    {
        for kld in [0.1, 0.0, 1e-9, 1e60] {
            let drawing = drawn(PlotKind::AblateKld, &[ablate(names, kld)]);
            assert!(says(&drawing, "mean KL divergence (nats)"));
        }
        assert!(says(&drawn(PlotKind::AblatePerplexity, &[ablate(names, 0.1)]), "+20.0 %"));
    }
}

#[test]
fn surfaces_of_any_size() {
    for (layers, tokens, channels, most) in
        [(4, 256, 128, 5.0), (1, 1, 1, 0.0), (2, 2, 512, 1e6), (12, 3, 4, 1e-7), (1, 300, 64, 65504.0)]
    {
        let drawing = drawn(PlotKind::KvMagnitudes, &[kv(layers, tokens, channels, most)]);
        assert_eq!(drawing.texts().filter(|text| text.text.ends_with(": values")).count(), layers);
        assert!(says(&drawing, "channel") && says(&drawing, "magnitude"));
    }
}

#[test]
fn memory_by_the_formula() {
    for (tokens, bytes) in [(&[256, 512, 1024, 8192][..], 4096), (&[1], 1), (&[1 << 24], 1 << 30)] {
        let drawing = drawn(PlotKind::MemoryContext, &[inspect(tokens, bytes)]);
        assert!(says(&drawing, "2 bits") && says(&drawing, "context (tokens)"));
    }
}

#[test]
fn what_cannot_be_drawn_is_said() {
    let fails = |kind, input: Input, part: &str| {
        let error = format!("{:#}", draw(kind, &[input]).expect_err(part));
        assert!(error.contains(part) && error.starts_with("result.json: "), "{error}");
    };
    fails(PlotKind::StepTime, bench("m", vec![]), "has no rows");
    fails(PlotKind::Heat, eval("16 bits", std::iter::empty(), 1), "expected 1 to 200 lengths");
    fails(PlotKind::Heat, eval("16 bits", 1..300, 1), "found 299");
    fails(PlotKind::Heat, input(json!({"command": "eval", "model": "m", "cache": "c"})), "has no `lengths`");
    let depths = |depths: Value| {
        let lengths = json!([{"length": 5, "depths": depths}]);
        input(json!({"command": "eval", "model": "m", "cache": "c", "lengths": lengths}))
    };
    fails(PlotKind::Heat, depths(json!({"50": [3, 2]})), "found 3 and 2");
    fails(PlotKind::Heat, depths(json!({"50": [0, 0]})), "found 0 and 0");
    fails(PlotKind::Heat, depths(json!({"x": [0, 1]})), "expected thousandths");
    fails(PlotKind::KldPosition, perplexity(29, &[0.1]), "found 29");
    fails(PlotKind::KldPosition, perplexity(1, &[]), "has nothing to draw");
    fails(PlotKind::KldPosition, perplexity(1, &[1e200]), "found 1e200");
    fails(PlotKind::AblateKld, ablate(&["16 bits"], 0.1), "at least 2 settings");
    fails(PlotKind::AblateKld, ablate(&["16 bits", "2"], 1e150), "expected numbers");
    fails(PlotKind::KvMagnitudes, kv(0, 1, 1, 1.0), "expected 1 to 12 layers");
    fails(PlotKind::KvMagnitudes, kv(1, 0, 1, 1.0), "has no tokens");
    fails(PlotKind::KvMagnitudes, kv(1, 1, 0, 1.0), "has no magnitudes");
    fails(PlotKind::KvMagnitudes, kv(1, 1, 2, -1.0), "below 0");
    let null = json!({"command": "ablate", "settings": [{"name": "a"}, {"name": "b", "mean_kld": null}]});
    fails(PlotKind::AblateKld, input(null), "b: has no `mean_kld`");
}

#[test]
fn kinds_are_chosen_by_what_the_results_have() {
    let of = |batches: &[u64], depths: &[u64]| [bench("m", rows(&[16, 2], batches, depths, 1.0))];
    assert_eq!(applicable(&of(&[1], &[0, 512])).unwrap(), [PlotKind::MemoryContext, PlotKind::StepTime]);
    assert_eq!(applicable(&of(&[1, 2], &[0])).unwrap(), [PlotKind::MemoryBatch, PlotKind::ThroughputBatch]);
    assert_eq!(applicable(&of(&[1], &[0])).unwrap(), OF_BENCH);
    assert_eq!(choose(&[perplexity(1, &[0.1])], None).unwrap(), PlotKind::KldPosition);
    let error = |inputs: &[Input], kind| format!("{:#}", choose(inputs, kind).unwrap_err());
    assert!(error(&of(&[1], &[0, 1]), None).contains("expected one of memory-context, step-time"));
    assert!(error(&[kv(1, 1, 1, 1.0)], Some(PlotKind::Heat)).contains("expected kv-magnitudes"));
    assert!(error(&[kv(1, 1, 1, 1.0), perplexity(1, &[])], None).contains("is of `perplexity`"));
    assert!(error(&[input(json!({"command": "generate"}))], None).contains("expected a result of bench"));
    assert!(Input::new("x.json".into(), json!({"command": ["bench"]})).is_err());
}
