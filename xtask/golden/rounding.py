#!/usr/bin/env python3
"""How far rounding activations to 16 bits alone takes a model from float32, over a KIVI cache: the protocol of
`cargo xtask test-model`, in PyTorch, with none of kivi's code.

    python3 rounding.py --model MODEL --file TEXT [--positions N] [--ctx-size TOKENS] [--kv-bits LIST]
    python3 rounding.py --model MODEL --golden FILE [--runs N]

MODEL is the kivi-tiny checkpoint (any Llama with tied embeddings and plain rotary embedding will do). The text is cut into windows of
CTX tokens, as `windows` of xtask/src/test_model.rs does; the first quarter of each is read in one call, exactly, the rest one token a call
over a cache of which the first R*floor(n/R) keys and max(0, n-R) values are packed (R = 128, groups of 32, once and for good).
All runs round rows of keys (rotated) and values to the type that is tested before anything reads them, the reference too.

    exact      float32 throughout: the reference
    f64        float64 throughout, but for rows: how far two programs are that both round no activation
    logits     the reference, its logits rounded to the type: how much of the difference comes from the last op
    rounded    the output of every op (embedding, norm, linear, rotation, attention, gate, addition) rounded once to the type, and weights
               (f16 only changes them; bf16 holds them); in between all is float32, so no sum, softmax, norm or product is rounded
    same codes likewise, but with the codes, scales and zeros of the reference: what is left without codes that rounding has changed
    hf         LlamaForCausalLM of transformers in that type, no cache, all positions in one call; its reference is that in float32

With --golden, N times: how far the mean log-probability of a passage of that file (kivi-nll.json) is from the file's at 2 bits, at most, when
the output of every op is rounded; but for the first time it is multiplied by 1 + e before, |e| <= 2^-22, as another order of sums may do.
"""

import argparse
import json
import pathlib
import time

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

GROUP, RESIDUAL = 32, 128
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def fake_quant(x, bits, dim):
    """x with groups of 32 along `dim` (-2: tokens, so each channel alone; -1: channels, so each token alone) quantized."""
    groups = x.float().unflatten(dim, (-1, GROUP))
    inner = dim if dim == -1 else -2
    low, high = groups.amin(inner, keepdim=True), groups.amax(inner, keepdim=True)
    levels = 2**bits - 1
    scale, zero = ((high - low) / levels).half().float(), low.half().float()
    code = torch.where(scale > 0, ((groups - zero) / scale).clamp(0, levels).round(), 0.0)
    return (code * scale + zero).flatten(dim - 1 if dim == -1 else -3, dim).to(x.dtype)


class Layer:
    """Keys and values of a layer as attention sees them: packed ones dequantized, and rows."""

    def __init__(self, bits, rows, packed_as=None):
        """`packed_as`: the layer of another run, whose packed rows are taken instead."""
        self.bits, self.rows, self.packed_as = bits, rows, packed_as
        self.shown, self.packed = [None, None], [0, 0]

    def pack(self):
        """What a step finds packed, with as many rows as there are before it."""
        if self.bits == 16 or self.shown[0] is None:
            return
        n = self.shown[0].shape[2]
        for side, end in enumerate((n - n % RESIDUAL, max(0, n - RESIDUAL))):
            new = self.shown[side][:, :, self.packed[side] : end]
            if new.shape[2]:
                other = self.packed_as and self.packed_as.shown[side][:, :, self.packed[side] : end]
                new.copy_(fake_quant(new, self.bits, (-2, -1)[side]) if other is None else other)
                self.packed[side] = end

    def append(self, *rows):
        self.pack()
        rows = [new.to(self.rows).to(new.dtype) for new in rows]
        self.shown = [new if old is None else torch.cat([old, new], dim=2) for old, new in zip(self.shown, rows)]
        return self.shown


class Llama:
    def __init__(self, directory, compute=torch.float32, act=None):
        """`act`: the type to which each op's output is rounded; None rounds nothing."""
        self.config = c = json.loads((directory / "config.json").read_text())
        assert c["tie_word_embeddings"] and not c["rope_scaling"]
        self.round = (lambda x: x.to(act).to(compute)) if act else (lambda x: x)
        tensors = load_file(directory / "model.safetensors")
        # norm weights are kept in float32, as kivi keeps them
        self.weights = {k: v.to(compute) if v.dim() == 1 else self.round(v.to(compute)) for k, v in tensors.items()}
        wavelengths = c["rope_theta"] ** (torch.arange(0, c["head_dim"], 2).double() / c["head_dim"])
        self.inv_freq = (1.0 / wavelengths.float()).to(compute)

    def linear(self, x, name):
        return self.round(F.linear(x, self.weights[f"{name}.weight"]))

    def norm(self, x, name):
        return self.round(F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.config["rms_norm_eps"]))

    def rotate(self, x, start):
        angle = torch.arange(start, start + x.shape[2]).to(x.dtype)[:, None] * self.inv_freq
        (a, b), cos, sin = x.chunk(2, dim=-1), angle.cos(), angle.sin()
        return self.round(torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1))

    def step(self, tokens, start, layers):
        """The logits after the last of `tokens` [windows, n], which are at places from `start` on."""
        c, x = self.config, self.round(F.embedding(tokens, self.weights["model.embed_tokens.weight"]))
        for i, layer in enumerate(layers):
            name = f"model.layers.{i}"
            h = self.norm(x, f"{name}.input_layernorm")
            q, k, v = (self.linear(h, f"{name}.self_attn.{p}_proj").unflatten(-1, (-1, c["head_dim"])).transpose(1, 2) for p in "qkv")
            keys, values = layer.append(self.rotate(k, start), v)
            h = self.attend(self.rotate(q, start), keys, values)
            x = self.round(x + self.linear(h.transpose(1, 2).flatten(2), f"{name}.self_attn.o_proj"))
            h = self.norm(x, f"{name}.post_attention_layernorm")
            gate, up = self.linear(h, f"{name}.mlp.gate_proj"), self.linear(h, f"{name}.mlp.up_proj")
            x = self.round(x + self.linear(self.round(F.silu(gate) * up), f"{name}.mlp.down_proj"))
        return self.linear(self.norm(x[:, -1], "model.norm"), "model.embed_tokens")

    def attend(self, q, keys, values):
        # query heads that share a key head are rows of one product
        _, heads, n, head_dim = q.shape
        shared = heads // keys.shape[1]
        logits = q.reshape(-1, keys.shape[1], shared * n, head_dim) @ keys.transpose(2, 3) / head_dim**0.5
        if n > 1:
            future = torch.ones(n, keys.shape[2], dtype=torch.bool).triu(1 + keys.shape[2] - n)
            logits = logits.masked_fill(future.repeat(shared, 1), -torch.inf)
        return self.round((logits.softmax(-1) @ values).reshape(q.shape))


def predict(model, windows, bits, rows, packed_as=None):
    """Logits [windows, steps, vocabulary], teacher-forced, and the layers in the end."""
    others = packed_as or [None] * model.config["num_hidden_layers"]
    layers = [Layer(bits, rows, other) for other in others]
    prompt = windows.shape[1] // 4
    out = [model.step(windows[:, :prompt], 0, layers)]
    for i in range(prompt, windows.shape[1] - 1):
        out.append(model.step(windows[:, i : i + 1], i, layers))
    return torch.stack(out, dim=1), layers


def predict_hf(directory, windows, dtype):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()
    logits = torch.cat([model(window[None], use_cache=False).logits for window in windows])
    return logits[:, windows.shape[1] // 4 - 1 : -1]


def golden_difference(model, golden, rows):
    """The largest difference of a passage's mean log-probability at 2 bits."""
    most = 0.0
    for document in golden["documents"]:
        ids, n = torch.tensor(document["ids"])[None], golden["prefix"]
        layers = [Layer(2, rows) for _ in range(model.config["num_hidden_layers"])]
        out = [model.step(ids[:, :n], 0, layers)]
        for i in range(n, ids.shape[1] - 1):
            out.append(model.step(ids[:, i : i + 1], i, layers))
        found = torch.stack(out, dim=1)[0].double().log_softmax(-1).gather(1, ids[0, n:, None])
        expected = torch.tensor(document["logprob"][f"2:2 R{RESIDUAL}"]).double()
        most = max(most, (found.mean() - expected.mean()).abs().item())
    return most


def golden_differences(directory, golden, act, runs):
    model, differences = Llama(directory, act=act), []
    for run in range(runs):
        random = torch.Generator().manual_seed(run)
        near = lambda x: x * (1 + (torch.rand(x.shape, generator=random) - 0.5) * 2**-21) if run else x
        model.round = lambda x: near(x).to(act).to(x.dtype)
        differences.append(golden_difference(model, golden, act))
    return differences


def report(kind, name, bits, positions, expected, found):
    """One line; windows one after the other, the last cut short."""
    expected, found = (x.flatten(0, 1)[:positions] for x in (expected, found))
    same = (expected.argmax(-1) == found.argmax(-1)).double().mean().item()
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    kld = (p.exp() * (p - q)).sum(-1)
    print(f"| {kind} | {name} | {bits} | {len(kld)} | {100 * same:.2f} % | {kld.mean():.1e} | {kld.max():.1e} |", flush=True)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description="What rounding activations to 16 bits does to a model over a KIVI cache.")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="directory of kivi-tiny")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--file", type=pathlib.Path, help="text to read")
    what.add_argument("--golden", type=pathlib.Path, help="passages and their log-probabilities")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--ctx-size", type=int, default=1024)
    parser.add_argument("--kv-bits", type=lambda text: [int(x) for x in text.split(",")], default=[16, 4, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    began, n = time.monotonic(), args.positions

    if args.golden:
        golden = json.loads(args.golden.read_text())
        for name, act in TYPES.items():
            print(name, *(f"{x:.1e}" for x in golden_differences(args.model, golden, act, args.runs)), flush=True)
        return

    tokens = AutoTokenizer.from_pretrained(args.model)(args.file.read_bytes().decode()).input_ids
    count = -(-n // (args.ctx_size - args.ctx_size // 4))
    assert len(tokens) >= count * args.ctx_size, "give a longer text, or fewer positions"
    windows = torch.tensor(tokens[: count * args.ctx_size]).view(count, args.ctx_size)

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {count} windows of {args.ctx_size} tokens\n")
    print("| run | type | bits | positions | same top token | mean KL divergence | largest |\n|---|---|---|---|---|---|---|")
    single, double = Llama(args.model), Llama(args.model, torch.float64)
    # This file's model is that of transformers: rows in float32, nothing packed.
    hf = predict_hf(args.model, windows, torch.float32)
    report("exact, against hf", "f32", 16, n, hf, predict(single, windows, 16, torch.float32)[0])
    for name, act in TYPES.items():
        report("hf", name, 16, n, hf, predict_hf(args.model, windows, act))
        rounded = Llama(args.model, act=act)
        for bits in args.kv_bits:
            exact, layers = predict(single, windows, bits, act)
            report("f64", name, bits, n, exact, predict(double, windows, bits, act)[0])
            report("logits", name, bits, n, exact, exact.to(act))
            report("rounded", name, bits, n, exact, predict(rounded, windows, bits, act)[0])
            if bits < 16:
                report("same codes", name, bits, n, exact, predict(rounded, windows, bits, act, layers)[0])
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
