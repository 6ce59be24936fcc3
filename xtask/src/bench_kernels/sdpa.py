"""Times attention by PyTorch, scaled_dot_product_attention with the flash and cuDNN backends, one JSON object a line.

    python3 sdpa.py '{"device": 0, "dtype": "float16", "head_dim": 128,
                       "decode": ["32/8:1:4096"], "prefill": ["32/32:1:2048"]}'

Sets of operands take turns so that none is in the L2 cache; launches are captured in a graph and timed by events.
"""

import json
import statistics
import sys

try:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa
except ImportError as error:
    sys.exit(f"no PyTorch ({error})")

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
PAST_L2 = 512 << 20
MAX_SETS = 64
GRAPH, SAMPLES, MIN_SAMPLES, BUDGET = 1e-3, 50, 3, 0.5  # seconds of a graph, samples, seconds in all


def packed(q, k, v):
    """The query heads of a KV head as so many queries: the cache is read once."""
    b, heads, _, d = q.shape
    return sdpa(q.view(b, k.shape[1], heads // k.shape[1], d), k, v)


def expanded(q, k, v):
    """Each KV head repeated by a view, for backends that know no groups."""
    b, heads, _, d = q.shape
    kv, n = k.shape[1], k.shape[2]
    repeat = [x.view(b * kv, 1, n, d).expand(-1, heads // kv, -1, -1) for x in (k, v)]
    return sdpa(q.view(b * kv, heads // kv, 1, d), *repeat)


def variants(what, grouped):
    if what == "prefill":
        return {"plain": lambda q, k, v: sdpa(q, k, v, is_causal=True, enable_gqa=grouped)}
    if not grouped:
        return {"plain": sdpa}
    return {"gqa": lambda q, k, v: sdpa(q, k, v, enable_gqa=True), "packed": packed, "expanded": expanded}


def seconds_of(queue, samples):
    """What the device takes for each of so many calls of queue; all are queued before one is waited for."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
    events[0].record()
    for event in events[1:]:
        queue()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in zip(events, events[1:])]


def measure(run, sets):
    """The median over samples of the seconds that run(*set) takes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for operands in sets:
            run(*operands)
    torch.cuda.current_stream().wait_stream(side)
    once = min(seconds_of(lambda: run(*sets[0]), 3))
    launches = -(-min(int(GRAPH / once) + 1, 512) // len(sets)) * len(sets)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            run(*sets[i % len(sets)])
    graph.replay()
    samples = min(SAMPLES, max(MIN_SAMPLES, int(BUDGET / (launches * once))))
    return statistics.median(seconds_of(graph.replay, samples)) / launches


def operands(what, shape, spec, dtype):
    """Sets of q, k, v in [batch, heads, tokens, head_dim]."""
    (heads, kv_heads), batch, tokens = map(int, shape[0].split("/")), int(shape[1]), int(shape[2])
    d, rows = spec["head_dim"], tokens if what == "prefill" else 1
    sizes = [(batch, heads, rows, d), (batch, kv_heads, tokens, d), (batch, kv_heads, tokens, d)]
    bytes_of_set = 2 * 2 * batch * kv_heads * tokens * d
    count = min(MAX_SETS, max(1, -(-PAST_L2 // bytes_of_set)))
    return [[torch.randn(size, device="cuda", dtype=dtype) for size in sizes] for _ in range(count)]


def main():
    spec = json.loads(sys.argv[1])
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device")
    torch.cuda.set_device(spec["device"])
    for what, name in [(what, name) for what in ("decode", "prefill") for name in spec[what]]:
        line = {"what": what, "shape": name}
        try:
            sets = operands(what, name.split(":"), spec, getattr(torch, spec["dtype"]))
        except torch.cuda.OutOfMemoryError:
            print(json.dumps({**line, "error": "out of memory"}), flush=True)
            continue
        grouped = sets[0][0].shape[1] != sets[0][1].shape[1]
        for backend, kind in BACKENDS.items():
            for variant, run in variants(what, grouped).items():
                line = {"what": what, "shape": name, "backend": backend, "variant": variant}
                try:
                    with sdpa_kernel(kind):
                        line["seconds"] = measure(run, sets)
                except RuntimeError as error:
                    line["error"] = str(error).splitlines()[0]
                print(json.dumps(line), flush=True)
        del sets
        torch.cuda.empty_cache()


with torch.inference_mode():
    main()
