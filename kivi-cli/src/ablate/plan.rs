//! Which settings `ablate` compares.

use anyhow::Result;
use kivi_kernels::DType;
use kivi_model::fake::{Axis, FakeCache};
use kivi_quant::{Bits, GroupSize, KvDtype};

use crate::args::{AblateArgs, CacheArgs, KvBits, LayerArgs, LayerList};
use crate::{policy, settings};

/// One setting, as it was asked for.
#[derive(Clone, Copy)]
struct Choice<'a> {
    keys: Axis,
    values: Axis,
    bits: KvBits,
    group_size: GroupSize,
    residual: usize,
    sink: usize,
    skipped: Option<&'a LayerList>,
}

/// Keys of `k` bits and values of `v` bits as KIVI has them, in its usual groups.
const fn kivi(k: Bits, v: Bits) -> Choice<'static> {
    Choice {
        keys: Axis::Channel,
        values: Axis::Token,
        bits: KvBits { k, v },
        group_size: GroupSize::G32,
        residual: 128,
        sink: 0,
        skipped: None,
    }
}

/// What every other setting is compared with.
const FULL: Choice<'static> = kivi(Bits::B16, Bits::B16);

/// What is compared where nothing is asked for: widths, a short window, larger groups, and the other three pairs of axes.
const STUDY: [Choice<'static>; 9] = {
    const KIVI_2: Choice<'static> = kivi(Bits::B2, Bits::B2);
    [
        kivi(Bits::B4, Bits::B4),
        kivi(Bits::B4, Bits::B2),
        kivi(Bits::B2, Bits::B4),
        KIVI_2,
        Choice { residual: 32, ..KIVI_2 },
        Choice { group_size: GroupSize::G64, ..KIVI_2 },
        Choice { keys: Axis::Token, ..KIVI_2 },
        Choice { keys: Axis::Token, values: Axis::Channel, ..KIVI_2 },
        Choice { values: Axis::Channel, ..KIVI_2 },
    ]
};

/// The settings that the flags ask for, for activations of type `act`; 16 bits first.
///
/// # Errors
/// A setting that does not exist.
pub fn settings(args: &AblateArgs, n_layers: usize, act: DType) -> Result<Vec<FakeCache>> {
    let choices = if is_study(args) { STUDY.to_vec() } else { product(args) };
    let others = choices.into_iter().filter(|choice| choice.bits != FULL.bits);
    std::iter::once(FULL).chain(others).map(|choice| choice.cache(args, n_layers, act)).collect()
}

/// Whether no list is given.
fn is_study(args: &AblateArgs) -> bool {
    args.keys.is_empty()
        && args.values.is_empty()
        && args.kv_bits.is_empty()
        && args.kv_group_size.is_empty()
        && args.kv_residual.is_empty()
        && args.kv_sink.is_empty()
        && args.kv_skip_layers.is_empty()
}

/// Every combination of the lists; the last one changes first.
fn product(args: &AblateArgs) -> Vec<Choice<'_>> {
    let mut choices = vec![kivi(Bits::B2, Bits::B2)];
    choices = each(&choices, &args.keys, |choice, keys| Choice { keys: *keys, ..choice });
    choices = each(&choices, &args.values, |choice, values| Choice { values: *values, ..choice });
    choices = each(&choices, &args.kv_bits, |choice, bits| Choice { bits: *bits, ..choice });
    choices = each(&choices, &args.kv_group_size, |choice, size| Choice { group_size: *size, ..choice });
    choices = each(&choices, &args.kv_residual, |choice, residual| Choice { residual: *residual, ..choice });
    choices = each(&choices, &args.kv_sink, |choice, sink| Choice { sink: *sink, ..choice });
    each(&choices, &args.kv_skip_layers, |choice, skipped| Choice { skipped: Some(skipped), ..choice })
}

/// Each choice with each of `list`; as it is if there is none.
fn each<'a, T>(
    choices: &[Choice<'a>],
    list: &'a [T],
    with: impl Fn(Choice<'a>, &'a T) -> Choice<'a>,
) -> Vec<Choice<'a>> {
    if list.is_empty() {
        return choices.to_vec();
    }
    choices.iter().flat_map(|choice| list.iter().map(|item| with(*choice, item))).collect()
}

impl Choice<'_> {
    fn cache(self, args: &AblateArgs, n_layers: usize, act: DType) -> Result<FakeCache> {
        // Rows of the type of activations: nothing but what is quantized is rounded.
        let rows = (act == DType::F32).then_some(KvDtype::F32);
        let flags = CacheArgs {
            kv_group_size: self.group_size,
            kv_residual: self.residual,
            kv_sink: self.sink,
            kv_dtype: args.kv_dtype.or(rows),
        };
        let base = settings::cache(&flags, self.bits.k, self.bits.v, act)?;
        let layers = LayerArgs { kv_skip_layers: self.skipped.cloned(), kv_policy: None };
        let policy = policy::read(&layers, base, n_layers)?;
        Ok(FakeCache { policy, k_axis: self.keys, v_axis: self.values })
    }
}
