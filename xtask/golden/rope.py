"""Writes rope.txt: rotary frequencies as transformers computes them, as bits of f32.

    python3 rope.py > ../../kivi-model/tests/golden/rope.txt

A line is: rope_parameters as JSON, max_position_embeddings, head_dim, seq_len, attention_scaling,
frequencies in hexadecimal; separated by tabs.
"""

import json

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
DYNAMIC_ODD = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.7}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 2048}
YARN_ALL = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
    "beta_fast": 16, "beta_slow": 2, "mscale": 0.707, "mscale_all_dim": 1.0, "truncate": False,
}
YARN_SHORT = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64,
    "attention_factor": 0.9,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}
LLAMA3_ODD = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, "low_freq_factor": 1.5,
    "high_freq_factor": 3.0, "original_max_position_embeddings": 300,
}
CASES = [
    ({"rope_type": "default", "rope_theta": 500000.0}, 8192, 64, [1]),
    ({"rope_type": "default", "rope_theta": 10000.0}, 2048, 80, [1]),
    ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}, 2048, 64, [1]),
    (DYNAMIC, 2048, 64, [5, 2048, 2049, 5000]),
    (DYNAMIC_ODD, 1000, 80, [5, 1001, 9999]),
    (YARN, 8192, 64, [1]),
    (YARN_ALL, 163840, 80, [1]),
    (YARN_SHORT, 512, 16, [1]),
    (LLAMA3, 131072, 128, [1]),
    (LLAMA3_ODD, 131072, 64, [1]),
]

for parameters, positions, head_dim, lengths in CASES:
    config = LlamaConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim,
        max_position_embeddings=positions, rope_parameters=dict(parameters),
    )
    for seq_len in lengths:
        rope = LlamaRotaryEmbedding(config)
        rope(torch.zeros(1, 1, 1), torch.tensor([[seq_len - 1]]))
        bits = " ".join(f"{int(b):08x}" for b in rope.inv_freq.view(torch.int32))
        print(json.dumps(parameters), positions, head_dim, seq_len, rope.attention_scaling, bits, sep="\t")
