#!/usr/bin/env python3
"""Make the golden files that `kivi-model` is tested against, with Hugging Face transformers.

    python3 golden.py --model MODEL [--out DIR] [--only NAME] [--check]

MODEL is the kivi-tiny checkpoint. Everything runs in float32 on the CPU, one thread, weights up-cast
from the stored dtype, `attn_implementation="eager"`, and decoding is greedy: the prompt in one call,
then one token a call over a DynamicCache. Each result is also compared with `generate`.

    kivi-tiny.json        greedy continuations and logits of the embedded model
    random-llama.json     one small checkpoint for each variation of Llama's config.json (below)
    random-families.json  likewise of the other families
    passkey.json          the passkey prompts and what the model answers at full precision
    kivi-nll.json         copied from MODEL/golden-nll.json, which an independent model of KIVI made

`--check` recomputes all this and compares it with what is in DIR instead of writing.

# Weights of the random checkpoints

They are not stored: a formula that needs no library gives them, bit for bit. All integers are u64 and wrap.

    fnv1a(bytes)  h = 0xcbf29ce484222325; for each byte: h = (h ^ byte) * 0x100000001b3
    mix(z)        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9
                  z = (z ^ z >> 27) * 0x94d049bb133111eb
                  z ^ z >> 31
    noise(s, i)   mix(fnv1a(s as UTF-8) + i * 0x9e3779b97f4a7c15)

Element i (row-major) of the tensor `name` is, with u = noise(name, i) >> 40 (24 bits)

    t = (u / 2^24 - 0.5) * 2           in [-1, 1), exact in f32
    1 + 0.125 * t                      if name ends in "norm.weight", "ln_f.weight", "ln_attn.weight" or "ln_mlp.weight"
                                       (the sum rounds once, to f32)
    0.5 * t                            if name contains "embed", "lm_head", "q_proj", "k_proj" or "query_key_value" (exact)
    0.25 * t                           otherwise, biases too (exact)

then rounded from f32 to the checkpoint's dtype, to nearest, ties to even. Values to check an implementation with
(`WEIGHT_CHECKS`, also in random-llama.json) are asserted whenever this script runs.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

GAMMA = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
VERSIONS = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32 on the CPU"

# --------------------------------------------------------------------------------------------------
# Numbers without a library


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & MASK
    return h


def noise(name, count):
    """The first `count` values of noise(name, i), as u64."""
    z = np.uint64(fnv1a(name.encode())) + np.arange(count, dtype=np.uint64) * np.uint64(GAMMA)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def weight(name, shape):
    """A tensor of a random checkpoint, in float32."""
    u = (noise(name, math.prod(shape)) >> np.uint64(40)).astype(np.float32)
    t = (u / np.float32(2**24) - np.float32(0.5)) * np.float32(2)
    if name.endswith(tuple(f"{norm}.weight" for norm in ("norm", "ln_f", "ln_attn", "ln_mlp"))):
        t = np.float32(1) + np.float32(0.125) * t
    elif any(part in name for part in ("embed", "lm_head", "q_proj", "k_proj", "query_key_value")):
        t = np.float32(0.5) * t
    else:
        t = np.float32(0.25) * t
    return torch.from_numpy(t.reshape(shape))


def weight_bits(name, i):
    value = weight(name, (i + 1,))[i].numpy()
    bf16 = torch.from_numpy(value[None]).bfloat16().view(torch.int16).numpy()
    return (f"{noise(name, i + 1)[i]:016x}", *(x.tobytes()[::-1].hex() for x in (value, np.float16(value), bf16)))


CHECK_FIELDS = ("name", "index", "noise", "f32", "f16", "bf16")
# A tensor's name, an index, noise(name, index), and the bits of the weight as f32, f16 and bf16.
WEIGHT_CHECKS = [
    ("model.norm.weight", 0, "4e4e52191e974f2e", "3f739394", "3b9d", "3f74"),
    ("model.norm.weight", 63, "6f037721cc9f3185", "3f7bc0de", "3bde", "3f7c"),
    ("model.embed_tokens.weight", 1, "5f0ce47989047d81", "be03cc70", "b01e", "be04"),
    ("model.layers.1.self_attn.k_proj.weight", 1000, "a4cb1c8b707420a4", "3e132c70", "3099", "3e13"),
    ("model.layers.0.mlp.down_proj.weight", 4095, "8d1cf81e0dde893e", "3cd1cf80", "268e", "3cd2"),
    ("model.layers.0.self_attn.q_proj.bias", 2, "939f76b6171c382f", "3d9cfbb0", "2ce8", "3d9d"),
]
FAMILY_CHECKS = [
    (name, i, *weight_bits(name, i))
    for name, i in [
        ("transformer.ln_f.weight", 3),
        ("transformer.h.0.ln_mlp.weight", 4),
        ("transformer.h.0.ln_mlp.bias", 4),
        ("transformer.word_embeddings.weight", 9),
        ("transformer.h.1.self_attention.query_key_value.weight", 70),
        ("model.layers.0.self_attn.q_norm.weight", 5),
    ]
]


# --------------------------------------------------------------------------------------------------
# Greedy decoding


def body(model):
    """The model without its head, which holds the rotary embedding."""
    return getattr(model, "model", None) or model.transformer


def fresh_rope(model):
    """Makes the rotary embedding anew: the dynamic type keeps state."""
    body(model).rotary_emb = type(body(model).rotary_emb)(model.config)


@torch.no_grad()
def greedy(model, ids, steps):
    """`steps` greedy tokens after `ids`; also the logits after each call and the rotary frequencies it used.

    logits[0] follows the last prompt token, logits[k] the k-th new token: steps + 1 rows in all.
    """
    cache = DynamicCache(config=model.config)
    tokens, logits, rope = [], [], []
    feed = ids
    for _ in range(steps + 1):
        out = model(torch.tensor([feed]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits.append(out.logits[0, -1])
        rope.append(body(model).rotary_emb.inv_freq.tolist())
        tokens.append(int(logits[-1].argmax()))
        feed = [tokens[-1]]
    return tokens[:steps], logits, rope


def margins(logits):
    """How far the best logit is ahead of the second, at each step."""
    return [float(x[0] - x[1]) for x in (row.topk(2).values for row in logits)]


def generate(model, ids, steps, eos=None):
    """The same from transformers' own loop."""
    fresh_rope(model)
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = 0
    out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False, max_new_tokens=steps,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


def load(directory, attention="eager", **changes):
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention, output_loading_info=True, **changes
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval()


def nine(values):
    """f32 values with the nine digits that identify them."""
    return [float(f"{float(v):.9g}") for v in values]


# --------------------------------------------------------------------------------------------------
# Passkey prompts

PASSKEY = {
    "head": "Somewhere in the following pages a number is hidden. Keep it in mind; you will be asked for it at the end.\n",
    "filler": "The river runs to the sea. The wind is in the trees. The night was dark and the road was long.\n",
    "needle": "The pass key is {key}. Remember it. {key} is the pass key.\n",
    "question": "What is the pass key? The pass key is",
}


def passkey_prompt(count, n_tokens, depth, key):
    """A prompt of at most `n_tokens` tokens (BOS included; fewer by less than one filler line).

    `count(text)` is the number of tokens of a text without BOS, `depth` the place of the needle in thousandths
    of the filler, `key` a number of five digits. Lines are tokenized apart from each other, so counts add up.
    Returns the prompt, the filler lines and those of them before the needle.
    """
    needle = PASSKEY["needle"].replace("{key}", str(key))
    fixed = 1 + count(PASSKEY["head"]) + count(needle) + count(PASSKEY["question"])
    lines = (n_tokens - fixed) // count(PASSKEY["filler"])
    before = lines * depth // 1000
    filler = PASSKEY["filler"]
    text = PASSKEY["head"] + filler * before + needle + filler * (lines - before) + PASSKEY["question"]
    return text, lines, before


def passkey_cases(n_tokens, cases=20):
    """(depth, key) of each prompt of that length: depths 25, 75, .. 975, keys by `noise`."""
    keys = noise(f"passkey/{n_tokens}", cases)
    return [((2 * i + 1) * 500 // cases, 10000 + int(k) % 90000) for i, k in enumerate(keys)]


def make_passkey(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    # sdpa for speed: only whole answers matter here
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa").eval()
    count = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)
    sets = []
    for n_tokens in (2000, 7900):
        cases = []
        for depth, key in passkey_cases(n_tokens):
            text, lines, before = passkey_prompt(count, n_tokens, depth, key)
            ids = tokenizer(text).input_ids
            answer = greedy(model, ids, 7)[0]
            cases.append(
                {
                    "key": str(key),
                    "depth": depth,
                    "lines": lines,
                    "before": before,
                    "prompt_tokens": len(ids),
                    "prompt_ids_fnv1a": f"{fnv1a(np.array(ids, dtype='<u4').tobytes()):016x}",
                    "answer_ids": answer,
                    "answer": tokenizer.decode(answer),
                    "correct": str(key) in tokenizer.decode(answer),
                }
            )
            log(f"passkey {n_tokens} depth {depth}: {cases[-1]['answer']!r}, {cases[-1]['correct']}")
        sets.append({"n_tokens": n_tokens, "correct": sum(c["correct"] for c in cases), "cases": cases})
    return {
        "about": [
            "Prompt: head + filler * before + needle + filler * (lines - before) + question, {key} replaced by the key.",
            "lines = (n_tokens - tokens of BOS, head, needle, question) / tokens of filler, rounded down;"
            " before = lines * depth / 1000, rounded down.",
            "key i of a set = 10000 + noise('passkey/<n_tokens>', i) % 90000, depth i = 25 + 50 i;"
            " noise as in random-llama.json.",
            "prompt_ids_fnv1a: FNV-1a 64 over the prompt ids (BOS first) as little-endian u32.",
            "answer_ids: 7 greedy tokens, eos (id 1) ignored. Correct: the decoded answer contains the key.",
        ],
        "made_with": VERSIONS,
        **PASSKEY,
        "tokens": {
            "bos": 1,
            "head": count(PASSKEY["head"]),
            "filler": count(PASSKEY["filler"]),
            "needle": count(PASSKEY["needle"].replace("{key}", "12345")),
            "question": count(PASSKEY["question"]),
        },
        "sets": sets,
    }


# --------------------------------------------------------------------------------------------------
# kivi-tiny

SUBJECTS = "The captain|My aunt|The old schoolmaster|A stranger from the north|The miller's daughter|Nobody|The doctor".split("|")
VERBS = "had forgotten|looked again at|never spoke of|walked slowly towards|remembered|was afraid of|wrote a letter about".split("|")
OBJECTS = "the broken lantern|the house beyond the hill|his brother's debt|the winter of that year|a ship with grey sails|the garden wall".split("|")
ENDINGS = ", and said nothing.|; it was late.|, though the rain had stopped.|, as people do in small towns.|.|, for the second time that day.".split("|")


def passage(name, count, n_tokens):
    """Procedural prose of at most `n_tokens` tokens, BOS included; the last sentence is cut to fill them."""
    draws = iter(noise(f"passage/{name}", 10_000).tolist())
    pick = lambda words: words[next(draws) % len(words)]
    text = ""
    while True:
        sentence = f"{pick(SUBJECTS)} {pick(VERBS)} {pick(OBJECTS)}{pick(ENDINGS)}"
        longer = text + (" " if text and not text.endswith("\n") else "") + sentence
        longer += "\n\n" if next(draws) % 5 == 0 else ""
        if 1 + count(longer) > n_tokens:
            break
        text = longer
    for word in sentence.split():
        if 1 + count(f"{text} {word}") > n_tokens:
            break
        text += f" {word}"
    return text


def tiny_prompts(count):
    refrain = "Round the green hill and over the grey bridge went the four white horses, and no one asked them why.\n"
    return {
        "opening": "It was long ago",
        "king": "Once upon a time there was a king who",
        "letter": "My dear Sir,\n\nI take up my pen on this cold evening to inform you that the affair of which we spoke in March"
        " has been settled at last, and not, I am sorry to say, in the manner that either of us had hoped for.",
        "multi-byte": "“Où est le café?” asked Zoë — naïve as ever — in the Straße near Łódź; 東京, Москва and Ἀθῆναι"
        " were far away 🙂🧭, and the bill was 3½ €…\n",
        "question": "Question: A farmer has 12 hens and each hen lays 3 eggs a week. He sells 20 of the eggs."
        " How many eggs are left after 2 weeks?\nAnswer:",
        "record": '{"name": "Northland", "area": {"total": 48210, "unit": "sq km"}, "capital": "Port Grey", "rivers": [',
        "refrain": refrain * 12,
        "passkey": passkey_prompt(count, 500, 300, 48157)[0],
        "passage-1000": passage("1000", count, 1000),
        "passage-2000": passage("2000", count, 2000),
    }


def make_tiny(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = load(model_dir)
    count = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)
    vocab, bos, eos = model.config.vocab_size, tokenizer.bos_token_id, model.config.eos_token_id
    probe = [(i * 131 + 7) % vocab for i in range(32)]
    steps = 64
    cases = []
    for name, text in tiny_prompts(count).items():
        ids = tokenizer(text).input_ids
        assert ids[0] == bos and bos not in ids[1:]
        tokens, logits, _ = greedy(model, ids, steps)
        assert tokens == generate(model, ids, steps), name
        gap = margins(logits)[:steps]
        log(f"kivi-tiny {name}: {len(ids)} tokens, smallest margin {min(gap):.4f}: {tokenizer.decode(tokens)[:60]!r}")
        assert min(gap) > 1e-3, f"{name}: a tie would make the test depend on rounding; change the prompt"
        cases.append(
            {
                "name": name,
                "prompt": text,
                "prompt_ids": ids,
                "tokens": tokens,
                "text": tokenizer.decode(tokens),
                "first_eos": tokens.index(eos) if eos in tokens else None,
                "margins": [float(f"{m:.4g}") for m in gap],
                "logits": [
                    {
                        "after": k,
                        "top": [[int(i), nine([v])[0]] for v, i in zip(*logits[k].topk(8))],
                        "probe": nine(logits[k][probe]),
                    }
                    for k in (0, 1, 32, 64)
                ],
            }
        )
    return {
        "about": [
            "prompt_ids: what AutoTokenizer gives for prompt; BOS (id 0) comes first, by the post-processor of tokenizer.json.",
            "tokens: greedy, eos (id 1) ignored; first_eos is the index of the first one among them, or null."
            " text: tokens decoded, special tokens kept.",
            "margins[k]: best minus second-best logit where tokens[k] was chosen.",
            "logits: after = number of new tokens fed after the prompt (0: last prompt position; 64: all of them)."
            " top: the 8 largest as [id, value]. probe: the logits of the ids in probe_ids.",
        ],
        "made_with": VERSIONS,
        "probe_ids": probe,
        "cases": cases,
    }


# --------------------------------------------------------------------------------------------------
# Random checkpoints

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}  # more rotary frequencies
F32, F16, BF16 = "float32", "float16", "bfloat16"
STORED = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


def old(dtype, scaling=None, theta=10000.0, drop=(), **changes):
    """config.json as before transformers 5."""
    config = BASE | {"rope_theta": theta, "rope_scaling": scaling, "torch_dtype": dtype} | changes
    return {k: v for k, v in config.items() if k not in drop}


def new(dtype, rope=None, **changes):
    """config.json as transformers 5 writes it."""
    rope = {"rope_type": "default", "rope_theta": 10000.0} | (rope or {})
    return BASE | {"rope_parameters": rope, "dtype": dtype} | changes


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}

# name: (config, prompt length, what more: shards, extra tensors, eos from the generated tokens)
CASES = {
    "llama1-minimal": (
        old(F16, drop=("rope_theta", "rope_scaling", "num_key_value_heads", "tie_word_embeddings"), rms_norm_eps=1e-06),
        21,
        {"extra": {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": [8] for i in range(2)}},
    ),
    "llama2-mha": (old(F16, num_key_value_heads=4, pretraining_tp=1), 37, {}),
    "gqa-sharded": (new(BF16, num_hidden_layers=3), 50, {"shards": 3}),
    "mqa": (old(F32, num_key_value_heads=1), 64, {}),
    "tied": (new(BF16, tie_word_embeddings=True), 33, {}),
    "tied-sharded-old": (old(F16, tie_word_embeddings=True, num_hidden_layers=3), 5, {"shards": 3}),
    "attention-bias": (old(F32, attention_bias=True), 40, {}),
    "mlp-bias": (new(F16, mlp_bias=True), 41, {}),
    "both-biases": (new(BF16, attention_bias=True, mlp_bias=True, num_key_value_heads=4), 28, {"shards": 3}),
    "head-dim-larger": (new(F32, head_dim=32), 45, {}),
    "head-dim-smaller": (old(BF16, head_dim=8, hidden_size=48), 45, {}),
    "theta": (new(F32, {"rope_theta": 500000.0}, **WIDE), 90, {}),
    "rope-linear-old": (old(F32, {"type": "linear", "factor": 2.5}, **WIDE), 90, {}),
    "rope-linear-new": (new(F16, {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0}, **WIDE), 70, {}),
    "rope-dynamic-long-prompt": (
        old(F32, {"type": "dynamic", "factor": 2.0}, max_position_embeddings=64, **WIDE), 90, {},
    ),
    "rope-dynamic-crossing": (
        new(F32, {"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=64, **WIDE), 50, {},
    ),
    "rope-yarn-old": (old(F32, {"type": "yarn", **YARN}, **WIDE), 90, {}),
    "rope-yarn-new": (new(BF16, {"rope_type": "yarn", **YARN}, **WIDE), 100, {}),
    "rope-yarn-mscale": (
        new(F32, {"rope_type": "yarn", **YARN, "mscale": 1.5, "mscale_all_dim": 0.5}, **WIDE), 60, {},
    ),
    "rope-yarn-no-truncate": (
        new(F32, {"rope_type": "yarn", **YARN, "truncate": False, "beta_fast": 8.0, "beta_slow": 0.5}, **WIDE), 60, {},
    ),
    "rope-yarn-attention-factor": (
        old(F32, {"rope_type": "yarn", **YARN, "attention_factor": 1.25}, **WIDE), 60, {},
    ),
    "rope-llama3-old": (old(BF16, {"rope_type": "llama3", **LLAMA3}, tie_word_embeddings=True, **WIDE), 90, {}),
    "rope-llama3-new": (new(F32, {"rope_type": "llama3", "rope_theta": 20000.0, **LLAMA3}, **WIDE), 70, {}),
    "gelu": (new(F32, hidden_act="gelu"), 30, {}),
    "gelu-tanh": (old(F32, hidden_act="gelu_pytorch_tanh"), 30, {}),
    "several-eos": (new(F32), 24, {"eos": [20, 12]}),
}  # fmt: skip


def shapes(config):
    """Names and shapes of a checkpoint's tensors, in the order of its files."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads, head_dim = config.get("num_key_value_heads", heads), config.get("head_dim", hidden // heads)
    linears = {
        "self_attn.q_proj": (heads * head_dim, hidden, "attention_bias"),
        "self_attn.k_proj": (kv_heads * head_dim, hidden, "attention_bias"),
        "self_attn.v_proj": (kv_heads * head_dim, hidden, "attention_bias"),
        "self_attn.o_proj": (hidden, heads * head_dim, "attention_bias"),
        "mlp.gate_proj": (inner, hidden, "mlp_bias"),
        "mlp.up_proj": (inner, hidden, "mlp_bias"),
        "mlp.down_proj": (hidden, inner, "mlp_bias"),
    }
    out = {"model.embed_tokens.weight": [config["vocab_size"], hidden]}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        out[prefix + "input_layernorm.weight"] = [hidden]
        for name, (rows, columns, bias) in linears.items():
            out[f"{prefix}{name}.weight"] = [rows, columns]
            if config.get(bias):
                out[f"{prefix}{name}.bias"] = [rows]
        out[prefix + "post_attention_layernorm.weight"] = [hidden]
    out["model.norm.weight"] = [hidden]
    if not config.get("tie_word_embeddings"):
        out["lm_head.weight"] = [config["vocab_size"], hidden]
    return out


def inv_freq(config, length):
    """The rotary frequencies that config.json asks for, at sequence length `length`, and the factor on cos and sin.

    Written from the definitions, in f64, so that a spelling which transformers read otherwise than meant is noticed.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    factor, limit = rope.get("factor"), config["max_position_embeddings"]
    if kind == "dynamic" and length > limit:
        base *= (factor * length / limit - (factor - 1)) ** (dim / (dim - 2))
    plain = base ** -(np.arange(0, dim, 2) / dim)
    if kind in ("default", "dynamic"):
        return plain, 1.0
    if kind == "linear":
        return plain / factor, 1.0
    trained = rope["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = trained * plain / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0, 1)
        assert ((0 < keep) & (keep < 1)).any() and keep.min() == 0 and keep.max() == 1, "all three bands must occur"
        return plain * (keep + (1 - keep) / factor), 1.0
    assert kind == "yarn", kind
    dim_of = lambda turns: dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))
    low, high = dim_of(rope.get("beta_fast", 32)), dim_of(rope.get("beta_slow", 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    assert ((0 < ramp) & (ramp < 1)).any(), "the ramp must occur"
    scale = lambda m: 0.1 * m * math.log(factor) + 1
    attention = scale(1)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        attention = scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    attention = rope.get("attention_factor", attention)
    return plain * (1 - ramp) + plain / factor * ramp, attention


def write_checkpoint(directory, files, tensors, dtype, config_text, generation_text):
    (directory / "config.json").write_text(config_text)
    if generation_text:
        (directory / "generation_config.json").write_text(generation_text)
    for file, names in files.items():
        save_file({n: weight(n, tensors[n]).to(STORED[dtype]) for n in names}, directory / file, {"format": "pt"})
    if len(files) > 1:
        size = sum(math.prod(s) for s in tensors.values()) * STORED[dtype].itemsize
        index = {"metadata": {"total_size": size}, "weight_map": {n: f for f, names in files.items() for n in names}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def in_files(names, shards):
    """The names of tensors for each file."""
    if shards == 1:
        return {"model.safetensors": names}
    cut = [len(names) * s // shards for s in range(shards + 1)]
    return {f"model-{s + 1:05}-of-{shards:05}.safetensors": names[cut[s] : cut[s + 1]] for s in range(shards)}


def random_case(name, config, length, more):
    steps = 32
    dtype = config.get("dtype") or config["torch_dtype"]
    tensors = shapes(config) | more.get("extra", {})
    files = in_files(list(tensors), more.get("shards", 1))

    with tempfile.TemporaryDirectory() as directory:
        write_checkpoint(pathlib.Path(directory), files, tensors, dtype, json.dumps(config), None)
        model = load(directory)
        # The first prompt whose continuation has no near tie.
        for seed in range(100):
            ids = (noise(f"prompt/{name}/{seed}", length) % np.uint64(config["vocab_size"])).tolist()
            fresh_rope(model)
            tokens, logits, rope = greedy(model, ids, steps)
            gap = margins(logits)[:steps]
            distinct = more.get("eos") and all(tokens.index(tokens[i]) == i for i in more["eos"])
            if min(gap) > 0.01 and len(set(tokens)) > 8 and (distinct or not more.get("eos")):
                break
        else:
            raise SystemExit(f"{name}: no prompt without a near tie")
        factor = model.model.rotary_emb.attention_scaling
        assert tokens == generate(model, ids, steps), name
        for k in (0, steps):
            want, want_factor = inv_freq(config, length + k)
            assert np.allclose(rope[k], want, rtol=3e-6), (name, k, rope[k], want)
            assert math.isclose(factor, want_factor, rel_tol=1e-12), (name, factor, want_factor)

        generation = None
        if more.get("eos"):  # the same checkpoint again, with several eos ids where config.json had one
            eos = [tokens[i] for i in more["eos"]]
            config = config | {"eos_token_id": eos}
            generation = {"bos_token_id": 1, "eos_token_id": eos, "do_sample": False}
            stop = min(more["eos"]) + 1
            assert generate(model, ids, steps, eos) == tokens[:stop], name
        config_text = json.dumps(config, indent=2) + "\n"
        generation_text = generation and json.dumps(generation, indent=2) + "\n"
        write_checkpoint(pathlib.Path(directory), files, tensors, dtype, config_text, generation_text)
        again = load(directory)
        assert again.generation_config.eos_token_id == config["eos_token_id"]
        assert greedy(again, ids, 1)[0] == tokens[:1]

    spread = float(logits[0].std())
    log(f"random {name}: logits std {spread:.2f}, smallest margin {min(gap):.3f}, seed {seed}, {len(set(tokens))} distinct tokens")
    return {
        "name": name,
        "config_json": config_text,
        "generation_config_json": generation_text,
        "dtype": dtype,
        "tensors": tensors,
        "files": files,
        "prompt_ids": ids,
        "tokens": tokens,
        "tokens_until_eos": (min(more["eos"]) + 1) if more.get("eos") else None,
        "margins": [float(f"{m:.4g}") for m in gap],
        "attention_factor": factor,
        "inv_freq_prompt": nine(rope[0]),
        "inv_freq_end": nine(rope[steps]),
        "logits_prompt": nine(logits[0]),
        "logits_end": nine(logits[steps]),
    }


def make_random(_model_dir):
    return {
        "about": [
            "Each case is a checkpoint that the test rebuilds: config_json and generation_config_json (or null) are the texts of"
            " these files, files gives the tensors of each safetensors file in order, tensors their shapes, dtype their type."
            " More than one file: model.safetensors.index.json has a weight_map of the same content.",
            "Integers are u64 and wrap. fnv1a: h = 0xcbf29ce484222325, for each byte h = (h ^ byte) * 0x100000001b3."
            " mix(z): z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9, z = (z ^ z >> 27) * 0x94d049bb133111eb, z ^ z >> 31."
            " noise(s, i) = mix(fnv1a(s) + i * 0x9e3779b97f4a7c15).",
            "Element i (row-major) of a tensor: u = noise(name, i) >> 40; t = (u / 2^24 - 0.5) * 2; the value in f32 is"
            " 1 + 0.125 t if name ends in 'norm.weight'; 0.5 t if name contains 'embed_tokens', 'lm_head', 'q_proj' or 'k_proj';"
            " else 0.25 t; then rounded to dtype, to nearest even. weight_checks has bits to compare with.",
            "tokens: 32 greedy tokens, prompt in one call, then one token a call, eos ignored; tokens_until_eos: how many of them"
            " there are when the eos ids of the config are honoured, the eos included (null: not tested)."
            " margins[k]: best minus second-best logit where tokens[k] was chosen.",
            "logits_prompt: all logits after the last prompt token; logits_end: after the last of the 32 tokens was fed too.",
            "inv_freq_prompt, inv_freq_end: rotary frequencies used by the prompt's call and by the last one; cos and sin are"
            " multiplied by attention_factor. Of type dynamic: a call that ends at sequence length n (cached + new) rotates all"
            " its queries and new keys by the frequencies for n: base' = base * (factor * n / max_position_embeddings"
            " - (factor - 1)) ^ (d / (d - 2)) if n > max_position_embeddings, else base. Cached keys stay as they were rotated.",
            "Tensors named rotary_emb.inv_freq are there to be ignored.",
        ],
        "made_with": VERSIONS,
        "weight_checks": [dict(zip(CHECK_FIELDS, check)) for check in WEIGHT_CHECKS],
        "cases": [random_case(name, *case) for name, case in CASES.items()],
    }


# --------------------------------------------------------------------------------------------------
# Random checkpoints of the other families

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GATED = SMALL | {"intermediate_size": 80, "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "hidden_act": "silu"}


def family(architecture, model_type, base):
    """Two functions that make its config.json: as before transformers 5, and as transformers 5 writes it."""
    names = {"architectures": [architecture], "model_type": model_type}
    before = lambda dtype, **changes: names | base | {"rope_theta": 10000.0, "torch_dtype": dtype} | changes
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    now = lambda dtype, rope=rope, **changes: names | base | {"rope_parameters": rope, "dtype": dtype} | changes
    return before, now


old_mistral, new_mistral = family("MistralForCausalLM", "mistral", GATED)
old_qwen2, new_qwen2 = family("Qwen2ForCausalLM", "qwen2", GATED)
old_qwen3, new_qwen3 = family("Qwen3ForCausalLM", "qwen3", GATED | {"head_dim": 16})
old_falcon, new_falcon = family("FalconForCausalLM", "falcon", SMALL)
FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
FALCON_RW = {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}
FULL, SLIDING = "full_attention", "sliding_attention"
RENAMED = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_kv_heads": "n_head_kv"}


def refined_web(model_type, config):
    """What transformers reads as `config`, as Falcon's own repositories had it before transformers did."""
    config = {RENAMED.get(name, name): value for name, value in config.items()}
    config |= {"architectures": ["RWForCausalLM"], "model_type": model_type}
    config |= {"apply_residual_connection_post_layernorm": False, "hidden_dropout": 0.0}
    for field in ("new_decoder_architecture", "max_position_embeddings", "rope_theta"):
        config.pop(field, None)
    if model_type == "RefinedWeb":
        config["parallel_attn"] = True
    return config


# name: (config that transformers reads, prompt length, what more: shards, extra tensors, config.json where it has
# another spelling)
FAMILIES = {
    "mistral-window-in-prompt": (old_mistral(BF16, sliding_window=24), 70, {}),
    "mistral-window-in-decode": (new_mistral(F32, sliding_window=40), 21, {"shards": 2}),
    "mistral-window-of-2": (old_mistral(F32, sliding_window=2), 9, {}),
    "mistral-no-window": (old_mistral(F16, sliding_window=None, rms_norm_eps=1e-06), 40, {}),
    "mistral-head-dim": (
        new_mistral(BF16, head_dim=32, num_key_value_heads=1, tie_word_embeddings=True, sliding_window=33), 50, {},
    ),
    "qwen2": (old_qwen2(BF16, use_sliding_window=False, sliding_window=16, max_window_layers=1), 45, {}),
    "qwen2-tied-sharded": (new_qwen2(F16, tie_word_embeddings=True), 30, {"shards": 3}),
    "qwen2-window-in-some-layers": (
        old_qwen2(F32, use_sliding_window=True, sliding_window=20, max_window_layers=1, num_hidden_layers=3), 60, {},
    ),
    "qwen2-layer-types": (
        new_qwen2(F32, use_sliding_window=True, sliding_window=30, num_hidden_layers=3,
                  layer_types=[SLIDING, FULL, SLIDING]), 20, {},
    ),
    "qwen2-yarn": (
        old_qwen2(F32, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}), 40, {},
    ),
    "qwen3": (new_qwen3(BF16), 45, {}),
    "qwen3-bias-tied": (old_qwen3(F16, attention_bias=True, tie_word_embeddings=True, head_dim=32), 33, {}),
    "qwen3-mqa-window": (
        new_qwen3(F32, use_sliding_window=True, sliding_window=24, max_window_layers=1, num_key_value_heads=1), 50, {"shards": 2},
    ),
    "falcon-7b": (old_falcon(BF16), 45, {"extra": {f"transformer.h.{i}.self_attention.maybe_rotary.inv_freq": [8] for i in range(2)}}),
    "falcon-7b-bias-untied": (new_falcon(F32, bias=True, tie_word_embeddings=False, ffn_hidden_size=96), 40, {"shards": 2}),
    "falcon-7b-refined-web": (
        old_falcon(F16, max_position_embeddings=2048, multi_query=True, parallel_attn=True), 30, {"spelling": "RefinedWebModel"},
    ),
    "falcon-7b-dynamic": (
        new_falcon(F32, {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, max_position_embeddings=48), 30, {},
    ),
    "falcon-7b-alibi": (new_falcon(F32, alibi=True), 50, {}),
    "falcon-7b-sequential": (new_falcon(F32, parallel_attn=False), 35, {}),
    "falcon-40b": (new_falcon(BF16, **FALCON_40B), 45, {"shards": 2}),
    "falcon-40b-refined-web": (
        old_falcon(F32, max_position_embeddings=2048, **FALCON_40B), 33, {"spelling": "RefinedWeb"},
    ),
    "falcon-40b-bias-mha": (new_falcon(F16, bias=True, **FALCON_40B | {"num_kv_heads": 4}), 40, {}),
    "falcon2-11b": (
        new_falcon(BF16, num_ln_in_parallel_attn=1, tie_word_embeddings=False, **FALCON_40B | {"num_kv_heads": 1}), 40, {},
    ),
    "falcon-rw": (old_falcon(BF16, **FALCON_RW), 60, {}),
    "falcon-rw-refined-web": (
        old_falcon(F32, max_position_embeddings=2048, activation="gelu", **FALCON_RW), 25, {"spelling": "RefinedWebModel"},
    ),
    "falcon-rw-no-bias": (new_falcon(F16, num_attention_heads=2, **FALCON_RW | {"bias": False}), 100, {}),
}  # fmt: skip


@torch.no_grad()
def without_cache(model, ids):
    """The logits after `ids`, all of them in one call."""
    fresh_rope(model)
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def check_window(config, directory, attention, ids, tokens, logits):
    """Asserts that the window, where there is one, was crossed and matters."""
    window = config.get("sliding_window")
    if window is None or (config["model_type"] != "mistral" and not config.get("use_sliding_window")):
        return
    assert len(ids) + len(tokens) > window, "no step crosses the window"
    fields = {key: value for key, value in config.items() if key not in ("model_type", "layer_types")}
    fields |= {"sliding_window": None} | ({"use_sliding_window": False} if "use_sliding_window" in config else {})
    full = load(directory, attention, config=AutoConfig.for_model(config["model_type"], **fields))
    assert (without_cache(full, ids + tokens) - logits[-1]).abs().max() > 0.01, "the window makes no difference"
    if len(ids) > window:
        assert (without_cache(full, ids) - logits[0]).abs().max() > 0.01, "nor in the prompt"


def family_case(name, config, length, more):
    steps = 32
    dtype = config.get("dtype") or config["torch_dtype"]
    # The eager attention of transformers' Falcon adds ALiBi twice, in its mask and by itself; sdpa adds it once, as
    # the original code does.
    attention = "sdpa" if config.get("alibi") else "eager"
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        (directory / "config.json").write_text(json.dumps(config))
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
        tensors = {key: list(value.shape) for key, value in empty.state_dict().items()}
        if empty.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        tensors |= more.get("extra", {})
        files = in_files(list(tensors), more.get("shards", 1))
        write_checkpoint(directory, files, tensors, dtype, json.dumps(config), None)
        model = load(directory, attention)
        for seed in range(100):
            ids = (noise(f"prompt/{name}/{seed}", length) % np.uint64(config["vocab_size"])).tolist()
            fresh_rope(model)
            tokens, logits, _ = greedy(model, ids, steps)
            gap = margins(logits)[:steps]
            if min(gap) > 0.01 and len(set(tokens)) > 8:
                break
        else:
            raise SystemExit(f"{name}: no prompt without a near tie")
        assert tokens == generate(model, ids, steps), name
        if (config.get("rope_parameters") or {}).get("rope_type") != "dynamic":
            once = without_cache(model, ids + tokens)
            assert (once - logits[steps]).abs().max() < 1e-4, f"{name}: the cache makes a difference"
        check_window(config, directory, attention, ids, tokens, logits)
    if "spelling" in more:
        config = refined_web(more["spelling"], config)
    log(f"random {name}: logits std {float(logits[0].std()):.2f}, smallest margin {min(gap):.3f}, seed {seed}, {len(set(tokens))} distinct tokens")
    return {
        "name": name,
        "config_json": json.dumps(config, indent=1) + "\n",
        "generation_config_json": None,
        "dtype": dtype,
        "tensors": tensors,
        "files": files,
        "prompt_ids": ids,
        "tokens": tokens,
        "tokens_until_eos": None,
        "margins": [float(f"{m:.4g}") for m in gap],
        "logits_prompt": nine(logits[0]),
        "logits_end": nine(logits[steps]),
    }


def alibi_slopes(heads):
    """The slopes of so many heads, which transformers' Falcon rounds to bf16."""
    return build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1].tolist()


def make_families(_model_dir):
    return {
        "about": [
            "As random-llama.json, of other families. Tensors and shapes are those of transformers' models.",
            "Weights have the same formula, and more names: 1 + 0.125 t also if name ends in 'ln_f.weight', 'ln_attn.weight' or"
            " 'ln_mlp.weight'; 0.5 t also if it contains 'embed' or 'query_key_value'.",
            "Each window is crossed, in the prompt or while decoding, and without it the logits differ by more than 0.01.",
            "RWForCausalLM is Falcon as its repositories had it before transformers; transformers read the same config in"
            " its own spelling.",
            "Models with ALiBi ran with attn_implementation='sdpa': 'eager' adds the biases twice.",
            "alibi_slopes: the slopes of build_alibi_tensor for a number of heads.",
        ],
        "made_with": VERSIONS,
        "weight_checks": [dict(zip(CHECK_FIELDS, check)) for check in FAMILY_CHECKS],
        "alibi_slopes": {str(heads): alibi_slopes(heads) for heads in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 71, 112)},
        "cases": [family_case(name, *case) for name, case in FAMILIES.items()],
    }


# --------------------------------------------------------------------------------------------------
# Files


def dump(value, indent=0):
    """JSON with a list of scalars (or of short lists) on one line."""
    pad = " " * (indent + 1)
    compact = isinstance(value, list) and not any(isinstance(v, (dict, str)) for v in value)
    if not isinstance(value, (dict, list)) or compact or not value:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + dump(v, indent + 1) for v in value) + "\n" + " " * indent + "]"
    rows = (f"{pad}{json.dumps(k, ensure_ascii=False)}: {dump(v, indent + 1)}" for k, v in value.items())
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"


def compare(path, want, got):
    """Stops unless equal, floats within 1e-4 of the larger of 1 and the value."""
    if isinstance(want, float) and isinstance(got, (float, int)):
        same = abs(want - got) <= 1e-4 * max(1.0, abs(want))
    elif isinstance(want, dict) and isinstance(got, dict) and want.keys() == got.keys():
        return [compare(f"{path}.{key}", want[key], got[key]) for key in want if key != "made_with"]
    elif isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        return [compare(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(want, got))]
    else:
        same = want == got
    if not same:
        raise SystemExit(f"{path}: {want!r:.200} in the file, {got!r:.200} now")


def log(message):
    print(message, file=sys.stderr, flush=True)


MAKERS = {"random-llama": make_random, "random-families": make_families, "kivi-tiny": make_tiny, "passkey": make_passkey}


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description="Make kivi-model's golden files with transformers.")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="directory of kivi-tiny")
    parser.add_argument("--out", type=pathlib.Path, default=root / "kivi-model/tests/golden")
    parser.add_argument("--only", choices=MAKERS, help="this file only")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    for name, i, *bits in WEIGHT_CHECKS:
        assert weight_bits(name, i) == tuple(bits), (name, i, weight_bits(name, i))

    for name, make in MAKERS.items():
        if args.only in (None, name):
            text = dump(make(args.model)) + "\n"
            file = args.out / f"{name}.json"
            if args.check:
                compare(name, json.loads(file.read_text()), json.loads(text))
                log(f"{file.name}: as made before")
            else:
                file.write_text(text)
                log(f"{file.name}: {len(text)} bytes")
    nll = args.model / "golden-nll.json"
    if args.only is None and nll.exists():
        file = args.out / "kivi-nll.json"
        if args.check:
            compare(file.name, json.loads(file.read_text()), json.loads(nll.read_text()))
        else:
            file.write_bytes(nll.read_bytes())


if __name__ == "__main__":
    main()
