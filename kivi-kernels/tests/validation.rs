//! Constructors refuse operands that do not fit, and a batch refuses plans that do not: each in one line that names
//! operation, operand, what it needs and what it got.

use kivi_kernels::ops::{self, Activation};
use kivi_kernels::{
    Backend, Batch, BatchCapacity, GroupStep, KvLayer, Rows, RowsMut, SeqStep, ShapeError, StepError,
    StepPlan, Weight,
};
use kivi_kernels_ref::{Cpu, CpuBuffer};
use kivi_quant::{Bits, GroupSize, KiviConfig, Packed, PageLayout};

type B = Cpu<f32>;

fn zeros(len: usize) -> CpuBuffer<f32> {
    Cpu::<f32>::new().zeros(len).expect("memory")
}

fn words(len: usize) -> CpuBuffer<u32> {
    Cpu::<f32>::new().zeros(len).expect("memory")
}

/// The first `rows * cols` elements of `buffer`.
fn out(buffer: &mut CpuBuffer<f32>, rows: usize, cols: usize) -> RowsMut<'_, B, f32> {
    RowsMut::new(buffer, rows, cols).expect("fits")
}

/// The message of a refusal.
fn refusal<T>(result: Result<T, ShapeError>) -> String {
    result.err().expect("a refusal").to_string()
}

#[test]
fn views_lie_inside_their_buffer() {
    let buffer = zeros(12);
    let rows = |rows, cols| Rows::<B, f32>::new(&buffer, rows, cols);
    assert_eq!(rows(3, 4).expect("fits").shape(), (3, 4));
    assert_eq!(refusal(rows(4, 4)), "view: buffer needs 4 rows of 4 inside the buffer, got 12");
    assert!(rows(usize::MAX, 2).is_err() && rows(2, usize::MAX).is_err());
    let all = rows(3, 4).expect("fits");
    assert_eq!(refusal(all.columns(2..5)), "view: columns needs a range within 0..4, got 2..5");
    assert_eq!(refusal(all.slice(2..4)), "view: rows needs a range within 0..3, got 2..4");
    let part = all.slice(1..3).and_then(|x| x.columns(1..3)).expect("fits");
    assert_eq!((part.offset(), part.shape(), part.stride()), (5, (2, 2), 4));
}

#[test]
fn shapes_of_rows_must_agree() {
    let (x, vector, wrong) = (zeros(12), zeros(4), zeros(5));
    let (mut y, mut small) = (zeros(12), zeros(8));
    let x = Rows::<B, f32>::new(&x, 3, 4).expect("fits");
    let short = RowsMut::new(&mut small, 2, 4).expect("fits");
    assert_eq!(
        refusal(ops::RmsNorm::new(short, x, &vector, 1e-5)),
        "rms_norm: out needs shape (3, 4), got (2, 4)"
    );
    assert_eq!(
        refusal(ops::RmsNorm::new(out(&mut y, 3, 4), x, &wrong, 1e-5)),
        "rms_norm: weight needs 4 elements or a divisor of that, got 5"
    );
    assert_eq!(
        refusal(ops::LayerNorm::new(out(&mut y, 3, 4), x, &vector, Some(&wrong), 1e-5)),
        "layer_norm: bias needs 4 elements, got 5"
    );
    let up = x.slice(0..2).expect("fits");
    assert!(
        refusal(ops::Activate::new(out(&mut y, 3, 4), x, Some(up), Activation::Silu))
            .starts_with("activate: up needs")
    );
    assert!(refusal(ops::Add::new(out(&mut y, 3, 4), up)).starts_with("add: out needs"));
}

#[test]
fn weights_must_have_the_products_size() {
    let x = zeros(8);
    let x = Rows::<B, f32>::new(&x, 2, 4).expect("fits");
    let (mut y, weight, wrong) = (zeros(6), Weight::F32(zeros(12)), Weight::F32(zeros(11)));
    assert!(ops::Linear::new(out(&mut y, 2, 3), x, &weight, None).is_ok());
    assert_eq!(
        refusal(ops::Linear::new(out(&mut y, 2, 3), x, &wrong, None)),
        "linear: weight needs [3, 4] elements, got 11"
    );
    assert_eq!(
        refusal(ops::Linear::new(out(&mut y, 2, 3), x, &weight, Some(&zeros(4)))),
        "linear: bias needs 3 elements, got 4"
    );
    assert_eq!(
        refusal(ops::Embed::new(out(&mut y, 2, 3), &wrong, &words(2))),
        "embed: table needs rows of 3 elements, got 11"
    );
    assert_eq!(
        refusal(ops::Embed::new(out(&mut y, 2, 3), &weight, &words(1))),
        "embed: tokens needs 2 elements, got 1"
    );
}

#[test]
fn rope_needs_whole_heads_and_a_row_for_each_token() {
    let (mut x, positions, inv_freq) = (zeros(24), words(3), zeros(2));
    let mut rope = |dims, positions: &CpuBuffer<u32>, inv_freq: &CpuBuffer<f32>| {
        let x = RowsMut::<B, f32>::new(&mut x, 3, 8).expect("fits");
        ops::Rope::new(x, dims, positions, inv_freq, None, 1.0).map(drop)
    };
    assert!(rope((4, 4), &positions, &inv_freq).is_ok());
    assert_eq!(refusal(rope((3, 2), &positions, &inv_freq)), "rope: x needs heads of 3 columns, got 8");
    assert_eq!(
        refusal(rope((4, 6), &positions, &inv_freq)),
        "rope: rotary_dim needs an even number up to 4, got 6"
    );
    assert_eq!(refusal(rope((4, 4), &words(2), &inv_freq)), "rope: positions needs 3 elements, got 2");
    assert_eq!(
        refusal(rope((4, 4), &positions, &zeros(3))),
        "rope: inv_freq needs rows of 2 elements, got 3"
    );
}

#[test]
fn selections_need_room() {
    let logits = zeros(6);
    let logits = Rows::<B, f32>::new(&logits, 2, 3).expect("fits");
    assert_eq!(refusal(ops::Argmax::new(&mut words(1), logits)), "argmax: out needs 2 elements, got 1");
    assert_eq!(
        refusal(ops::Sample::new(&mut words(1), logits, &words(12))),
        "sample: out needs 2 elements, got 1"
    );
    assert_eq!(
        refusal(ops::Sample::new(&mut words(2), logits, &words(11))),
        "sample: draws needs 12 elements, got 11"
    );
    let mut values = zeros(8);
    let values = RowsMut::new(&mut values, 2, 4).expect("fits");
    assert_eq!(
        refusal(ops::TopK::new(values, &mut words(8), logits)),
        "top_k: values needs at most 3 columns, got 4"
    );
}

/// A cache of 2 KV heads of 16 channels, 3 pages, 2 slots; a batch of up to 2 sequences and 300 rows.
fn cache_and_batch() -> (B, KvLayer<B>, Batch<B>) {
    let backend = Cpu::new();
    let config = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 64).expect("valid");
    let layout = PageLayout::new(config, 16).expect("valid");
    let cache = KvLayer::new(&backend, layout, 2, 3, 2).expect("memory");
    let capacity =
        BatchCapacity { max_seqs: 2, max_tokens: 300, max_pages: vec![3], n_pages: vec![3], n_slots: 2 };
    let batch = Batch::new(&backend, capacity, &[config]).expect("memory");
    (backend, cache, batch)
}

#[test]
fn a_cache_is_made_of_buffers_that_are_long_enough() {
    let config = KiviConfig::new(Bits::B2, Bits::B16, GroupSize::G32, 64).expect("valid");
    let layout = PageLayout::new(config.with_sink_tokens(4).expect("valid"), 16).expect("valid");
    // 2 KV heads, 3 pages, 2 slots; rows of 16 f16 are 8 words; values at 16 bits have neither ring nor sinks.
    let needed = [3 * 2 * layout.page_words(), 2 * 2 * 64 * 8, 0, 2 * 2 * 4 * 8, 0];
    let cache = |lens: [usize; 5]| {
        let [pool, k_ring, v_ring, k_sink, v_sink] = lens.map(words);
        KvLayer::<B>::from_buffers((layout, 2), (3, 2), pool, [k_ring, v_ring], [k_sink, v_sink])
    };
    assert_eq!(cache(needed).expect("long enough").n_pages(), 3);
    assert!(cache(needed.map(|len| len + 1)).is_ok());
    for (i, name) in ["pool", "k_ring", "v_ring", "k_sink", "v_sink"].into_iter().enumerate() {
        let Some(short) = needed[i].checked_sub(1) else { continue };
        let mut lens = needed;
        lens[i] = short;
        assert_eq!(refusal(cache(lens)), format!("cache: {name} needs {} words, got {short}", needed[i]));
    }
}

fn sequence<'a>(
    tokens: &'a [u32],
    len: usize,
    pages: &'a [u32],
    packed: [usize; 4],
    slot: usize,
) -> SeqStep<'a> {
    let [k, v, k_next, v_next] = packed;
    let (packed, packed_next) = (Packed { k, v }, Packed { k: k_next, v: v_next });
    SeqStep { tokens, len, active: true, groups: vec![GroupStep { slot, pages, packed, packed_next }] }
}

#[test]
fn plans_are_checked_before_anything_is_written() {
    let (backend, _, mut batch) = cache_and_batch();
    let tokens = [0; 301];
    let mut plan = |seqs: Vec<SeqStep<'_>>| match batch.plan(&backend, &StepPlan { seqs }) {
        Ok(()) => String::from("planned"),
        Err(StepError::Plan(error)) => error.to_string(),
        Err(error) => panic!("not the plan's fault: {error}"),
    };
    let one = |n: usize, len, pages, packed| vec![sequence(&tokens[..n], len, pages, packed, 0)];
    assert_eq!(plan(one(1, 64, &[0], [64, 0, 64, 1])), "planned");
    assert_eq!(
        plan(one(301, 0, &[0], [0; 4])),
        "step: sequence 0: the new tokens needs 1 to 300 rows in all, got 301"
    );
    assert_eq!(
        plan(one(0, 0, &[0], [0; 4])),
        "step: sequence 0: the new tokens needs 1 to 300 rows in all, got 0"
    );
    let unpacked = "step: sequence 0: packed keys needs the last 64 of 65 tokens at most unpacked, got 0";
    assert_eq!(plan(one(1, 65, &[0], [0, 1, 64, 2])), unpacked);
    let early =
        "step: sequence 0: packed values needs from 0 to 65 after the step, at most 64 unpacked, got 0";
    assert_eq!(plan(one(1, 64, &[0], [64, 0, 64, 0])), early);
    let groups = "step: sequence 0: packed keys needs multiples of the group size 32, got 33";
    assert_eq!(plan(one(1, 64, &[0], [32, 0, 33, 1])), groups);
    assert_eq!(
        plan(one(1, 64, &[], [64, 0, 64, 1])),
        "step: sequence 0: the page table needs 1 to 3 pages, got 0"
    );
    assert_eq!(
        plan(one(1, 64, &[2, 3], [64, 0, 64, 1])),
        "step: sequence 0: the page table needs pages below 3, got 3"
    );
    let mut far = one(1, 0, &[0], [0; 4]);
    far[0].groups[0].slot = 2;
    assert_eq!(plan(far), "step: sequence 0: the slot needs one below 2, got 2");
    let mut three = one(1, 0, &[0], [0; 4]);
    three.extend(one(1, 0, &[0], [0; 4]));
    three.extend(one(1, 0, &[0], [0; 4]));
    for (step, slot) in three.iter_mut().zip([0, 1, 0]) {
        step.groups[0].slot = slot;
    }
    assert_eq!(plan(three), "step: sequence 2: the batch needs at most 2 sequences, got 3");
    let two = |active| {
        let mut two = [one(1, 0, &[0], [0; 4]), one(1, 0, &[0], [0; 4])].concat();
        two[1].active = active;
        two
    };
    let taken = "step: sequence 1: the slot needs one that no other active sequence has, got 0";
    assert_eq!(plan(two(true)), taken);
    assert_eq!(plan(two(false)), "planned");
    let many = u32::MAX as usize;
    assert_eq!(
        plan(one(1, many, &[0], [many; 4])),
        format!("step: sequence 0: the cache needs fewer than {many} tokens, got {many}")
    );
    assert!(plan(one(1, usize::MAX, &[0], [usize::MAX; 4])).starts_with("step: sequence 0: the cache"));
}

/// A size that no machine has is refused, also where it wraps around to a small one.
#[test]
fn impossible_caches_are_refused() {
    let backend = Cpu::<f32>::new();
    let config = KiviConfig::new(Bits::B2, Bits::B2, GroupSize::G32, 64).expect("valid");
    let layout = PageLayout::new(config, 16).expect("valid");
    let n_pages = usize::MAX / layout.page_words() / 2 + 1;
    assert!(KvLayer::<B>::new(&backend, layout, 2, n_pages, 1).is_err());
    assert!(KvLayer::<B>::new(&backend, layout, 2, 1, usize::MAX / 2).is_err());
    let capacity = BatchCapacity {
        max_seqs: 8,
        max_tokens: 8,
        max_pages: vec![usize::MAX / 8 + 1],
        n_pages: vec![1],
        n_slots: 8,
    };
    assert!(Batch::<B>::new(&backend, capacity, &[config]).is_err());
}

#[test]
fn attention_needs_the_batchs_rows_and_a_cache_that_has_its_pages() {
    let (backend, mut cache, mut batch) = cache_and_batch();
    let tokens = [0; 2];
    let (q, new, mut out) = (zeros(2 * 64), zeros(2 * 32), zeros(2 * 64));
    let mut attempt = |pages: &[u32], slot, rows: usize, heads: usize| {
        let seqs = vec![sequence(&tokens, 64, pages, [64, 0, 64, 2], slot)];
        batch.plan(&backend, &StepPlan { seqs }).expect("a good plan");
        let new = Rows::<B, f32>::new(&new, rows, 32)?;
        let (out, q) = (RowsMut::new(&mut out, 2, heads * 16)?, Rows::new(&q, 2, heads * 16)?);
        ops::Attend::new(out, q, (new, new), &cache, (&batch, 0), 0.25)?.with_window(1).map(drop)?;
        ops::Append::new((new, new), &mut cache, (&batch, 0)).map(drop)
    };
    assert_eq!(attempt(&[2], 1, 2, 4), Ok(()));
    assert_eq!(refusal(attempt(&[2], 1, 1, 4)), "attend: k_new needs shape (2, 32), got (1, 32)");
    assert_eq!(
        refusal(attempt(&[2], 1, 2, 3)),
        "attend: q needs a multiple of 2 KV heads x head_dim 16 columns, got 48"
    );
    let config = *cache.layout().config();
    let mut other = |n_pages: usize, n_slots| {
        let capacity = BatchCapacity {
            max_seqs: 2,
            max_tokens: 300,
            max_pages: vec![3],
            n_pages: vec![n_pages],
            n_slots,
        };
        let batch = Batch::new(&backend, capacity, &[config]).expect("memory");
        let none = Rows::<B, f32>::new(&new, 0, 32)?;
        ops::Append::new((none, none), &mut cache, (&batch, 0)).map(drop)
    };
    assert_eq!(other(3, 2), Ok(()));
    assert_eq!(refusal(other(4, 2)), "append: batch needs tables of at most 3 pages, got 4");
    assert_eq!(refusal(other(3, 3)), "append: batch needs at most 2 slots, got 3");
}

#[test]
fn a_plan_of_attention_is_of_one_step_and_of_equal_heads_and_windows() {
    let (backend, cache, mut batch) = cache_and_batch();
    let tokens = [0; 2];
    let step = |batch: &mut Batch<B>| {
        let seqs = vec![sequence(&tokens, 64, &[2], [64, 0, 64, 2], 1)];
        batch.plan(&backend, &StepPlan { seqs }).expect("a good plan");
    };
    step(&mut batch);
    let refused = |batch: &mut Batch<B>, (group, heads, window)| {
        refusal(ops::PlanAttend::new((batch, group), &cache, heads, window).map(drop))
    };
    let columns = "plan_attend: q needs a multiple of 2 KV heads x head_dim 16 columns, got";
    assert_eq!(refused(&mut batch, (0, 3, None)), format!("{columns} 48"));
    assert_eq!(refused(&mut batch, (0, usize::MAX, None)), format!("{columns} {}", usize::MAX));
    assert_eq!(refused(&mut batch, (1, 4, None)), "plan_attend: group needs one of 1 cache groups, got 1");
    assert_eq!(refused(&mut batch, (0, 4, Some(0))), "plan_attend: window needs at least 1 token, got 0");
    assert!(!batch.attention_is_planned(0));

    let (q, new, mut out) = (zeros(2 * 64), zeros(2 * 32), zeros(2 * 64));
    let mut planned = |batch: &Batch<B>, heads: usize, window: Option<usize>| {
        let new = Rows::<B, f32>::new(&new, 2, 32).expect("rows");
        let out = RowsMut::new(&mut out, 2, heads * 16).expect("rows");
        let q = Rows::new(&q, 2, heads * 16).expect("rows");
        let op = ops::Attend::new(out, q, (new, new), &cache, (batch, 0), 0.25).expect("an op");
        let op = if let Some(window) = window { op.with_window(window).expect("a window") } else { op };
        op.into_parts().plan().is_some()
    };
    let op = ops::PlanAttend::new((&mut batch, 0), &cache, 4, Some(8)).expect("a plan");
    op.into_parts().done();
    assert!(batch.attention_is_planned(0) && planned(&batch, 4, Some(8)));
    assert!(!planned(&batch, 2, Some(8)), "other heads");
    assert!(!planned(&batch, 4, Some(9)) && !planned(&batch, 4, None), "other windows");
    ops::PlanAttend::new((&mut batch, 0), &cache, 4, Some(8)).map(drop).expect("a plan");
    assert!(!planned(&batch, 4, Some(8)), "an op that no backend ran");
    ops::PlanAttend::new((&mut batch, 0), &cache, 4, Some(8)).expect("a plan").into_parts().done();
    step(&mut batch);
    assert!(!batch.attention_is_planned(0) && !planned(&batch, 4, Some(8)), "another step");
}
