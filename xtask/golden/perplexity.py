#!/usr/bin/env python3
"""Make the golden file of perplexity and KL divergence over a KIVI cache, with Hugging Face transformers.

    python3 perplexity.py --model MODEL --out DIR [--check]

MODEL is the kivi-tiny checkpoint; the text is the token ids of DIR/kivi-nll.json. Everything runs in float32 on the CPU. The cache
keeps all rows and shows attention what a KIVI cache of n tokens would: the first R*floor(n/R) keys and max(0, n-R) values quantized and
dequantized (groups of 32, scale and zero rounded to float16), the rest as they are, and the new rows exactly.

The protocol is that of kivi-model/src/perplexity.rs: windows of CTX tokens, BOS first, STRIDE apart; the first CTX - STRIDE tokens in one
call, then one token a call.
"""

import argparse
import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, DynamicLayer

GROUP = 32
CTX, STRIDE = 320, 160
# k_bits, v_bits, residual length; the first is what the others are compared with.
SETTINGS = [(16, 16, 32), (8, 8, 32), (4, 4, 32), (2, 2, 32), (4, 2, 32), (2, 2, 128)]


def fake_quant(x, bits, dim):
    """x with groups of 32 along `dim` (-2: tokens, so each channel alone; -1: channels, so each token alone) quantized."""
    if bits == 16:
        return x
    groups = x.unflatten(dim, (-1, GROUP))
    inner = dim if dim == -1 else -2
    low, high = groups.amin(inner, keepdim=True), groups.amax(inner, keepdim=True)
    levels = 2**bits - 1
    scale = ((high - low) / levels).half().float()
    zero = low.half().float()
    code = torch.where(scale > 0, ((groups - zero) / scale).round().clamp(0, levels), 0.0)
    return (code * scale + zero).flatten(dim - 1 if dim == -1 else -3, dim)


class KiviLayer(DynamicLayer):
    def __init__(self, k_bits, v_bits, residual):
        super().__init__()
        self.bits, self.residual, self.packed = (k_bits, v_bits), residual, [None, None]

    def update(self, key_states, value_states, *args, **kwargs):
        n = self.get_seq_length()
        super().update(key_states, value_states)
        ends = (n - n % self.residual, max(0, n - self.residual))
        shown = []
        for side, (rows, end) in enumerate(zip((self.keys, self.values), ends)):
            done = 0 if self.packed[side] is None else self.packed[side].shape[-2]
            if end > done:
                new = fake_quant(rows[..., done:end, :], self.bits[side], (-2, -1)[side])
                self.packed[side] = new if done == 0 else torch.cat([self.packed[side], new], dim=-2)
            shown.append(rows if self.packed[side] is None else torch.cat([self.packed[side], rows[..., end:, :]], dim=-2))
        return tuple(shown)


@torch.no_grad()
def predictions(model, windows, setting):
    """Log-probabilities [windows, STRIDE, vocabulary] of the scored tokens' places."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    cache.layers = [KiviLayer(*setting) for _ in range(model.config.num_hidden_layers)]
    out = [model(windows[:, : CTX - STRIDE], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]]
    for i in range(CTX - STRIDE, CTX - 1):
        out.append(model(windows[:, i : i + 1], past_key_values=cache, use_cache=True).logits[:, -1])
    return torch.stack(out, dim=1).double().log_softmax(-1)


def make(model_dir, nll_file):
    documents = json.loads(nll_file.read_text())["documents"]
    text = [token for document in documents for token in document["ids"][1:]]
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    own = CTX - 1
    starts = range(0, len(text) - own + 1, STRIDE)
    windows = torch.tensor([[model.config.bos_token_id, *text[s : s + own]] for s in starts])
    scored = windows[:, CTX - STRIDE :]
    cases, base = [], None
    for setting in SETTINGS:
        log = predictions(model, windows, setting)
        base = log if base is None else base
        nll = -log.gather(-1, scored[..., None]).flatten()
        kld = (base.exp() * (base - log)).sum(-1).flatten()
        case = {
            "k_bits": setting[0],
            "v_bits": setting[1],
            "residual": setting[2],
            "nll": nll.mean().item(),
            "kld": kld.mean().item(),
            "kld_median": kld.sort().values[(len(kld) + 1) // 2 - 1].item(),
            "kld_max": kld.max().item(),
            "same_top": (log.argmax(-1) == base.argmax(-1)).double().mean().item(),
        }
        cases.append({key: value if isinstance(value, int) else float(f"{value:.7g}") for key, value in case.items()})
        print(cases[-1], file=sys.stderr)
    about = "windows over the ids of kivi-nll.json without their first tokens, one after the other; float32, group size 32"
    version = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    return {"about": about, "made_with": version, "ctx_size": CTX, "stride": STRIDE, "scored": scored.numel(), "cases": cases}


def main():
    parser = argparse.ArgumentParser(description="Make the golden file of perplexity over a KIVI cache.")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="directory of kivi-tiny")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    file = args.out / "perplexity.json"
    made = make(args.model, args.out / "kivi-nll.json")
    if not args.check:
        file.write_text(json.dumps(made, indent=1) + "\n")
        return
    known = json.loads(file.read_text())
    near = lambda a, b: abs(a - b) <= 1e-3 * max(1.0, abs(a))
    for old, new in zip(known["cases"], made["cases"], strict=True):
        if old.keys() != new.keys() or not all(near(old[key], new[key]) for key in old):
            raise SystemExit(f"{file.name}: {old} in the file, {new} now")
    print(f"{file.name}: as made before", file=sys.stderr)


if __name__ == "__main__":
    main()
