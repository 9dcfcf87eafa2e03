"""PyTorch's form of each operation at the sizes of a step: what `engine bench ops --device cuda` is compared with.

    python benches/peers/torch_gpu_ops.py --json ops.json
    python benches/peers/torch_gpu_ops.py --only attention,layer_norm --dtypes f16

Each operation is timed twice: `flushed`, where a buffer larger than the L2 cache is written before every
repetition, and `warm`, where the inputs are still in the cache, as they are where the operation before has just
written them. The device sleeps before each repetition until the host has enqueued it, so that the time is that of
the kernels and not of starting them. Names and sizes are those of the engine's own bench; the bytes behind a rate
are the fewest that the operation must move, each input read and each output written once.
"""

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common import Clock, chosen, machine, percentiles, write_json

FLUSH_BYTES = 256 << 20  # five times the L2 cache of an H100
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
SLEEP_CYCLES_PER_S = 2.0e9  # no device here runs faster: a sleep is never too short


@dataclass
class Op:
    """An operation ready to run. `amount` bytes or operations make the rate; None where no rate says anything."""
    name: str
    at: str
    run: Callable[[], object]
    amount: float | None = None
    unit: str = "GB/s"


@dataclass(frozen=True)
class Sizes:
    batch: int
    tokens: int
    width: int
    heads: int
    mlp: int
    features: int
    classes: int
    layers: int
    image: int
    patch: int
    square: int
    copy_bytes: int

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


VIT_B_32 = Sizes(batch=32, tokens=50, width=768, heads=12, mlp=3072, features=512, classes=102, layers=12,
                 image=224, patch=32, square=8192, copy_bytes=1 << 30)
TINY = Sizes(batch=2, tokens=5, width=64, heads=4, mlp=128, features=32, classes=10, layers=2,
             image=32, patch=16, square=128, copy_bytes=1 << 20)
RANK, ALPHA = 8, 16


class Bench:
    """Inputs of one type on one device."""

    def __init__(self, device: torch.device, dtype: str, sizes: Sizes):
        self.device, self.dtype, self.sizes = device, (DTYPES | {"u8": torch.uint8})[dtype], sizes
        self.bytes = self.dtype.itemsize
        torch.manual_seed(0)

    def random(self, *shape: int, dtype=None, grad: bool = False) -> torch.Tensor:
        made = torch.randn(*shape, device=self.device, dtype=dtype or self.dtype)
        return made.requires_grad_(grad)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def both(self, name, at, forward, inputs, amounts, unit="GB/s") -> Iterator[Op]:
        """An operation as training runs it, and its backward pass into `inputs`."""
        yield Op(name, at, forward, amounts[0], unit)
        y = forward()
        y = y if isinstance(y, tuple) else (y,)
        dy = [torch.randn_like(part) for part in y]
        yield Op(f"{name}_backward", at, lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True),
                 amounts[1], unit)


# ---------------------------------------------------------------- the operations


def layer_norm(b: Bench) -> Iterator[Op]:
    s = b.sizes
    x = b.random(s.batch, s.tokens, s.width, grad=True)
    weight, bias = b.random(s.width), b.random(s.width)
    once = x.numel() * b.bytes
    yield from b.both("layer_norm", str(list(x.shape)), lambda: F.layer_norm(x, (s.width,), weight, bias, 1e-5),
                      [x], (2 * once, 3 * once))


def activation(b: Bench) -> Iterator[Op]:
    s = b.sizes
    z = b.random(s.batch, s.tokens, s.mlp, grad=True)
    once = z.numel() * b.bytes
    # Quick GELU as transformers writes it.
    forms = {"QuickGelu": lambda: z * torch.sigmoid(1.702 * z), "Gelu": lambda: F.gelu(z)}
    for kind, form in forms.items():
        yield from b.both("activation", f"{kind} {list(z.shape)}", form, [z], (2 * once, 3 * once))


def attention(b: Bench) -> Iterator[Op]:
    s = b.sizes
    for tokens in (s.tokens, 197, 257):
        # As the projections leave them: heads side by side, seen through a transposition.
        leaves = [b.random(s.batch, tokens, s.width, grad=True) for _ in range(3)]

        def form(leaves=leaves, tokens=tokens):
            split = [t.view(s.batch, tokens, s.heads, -1).transpose(1, 2) for t in leaves]
            o = F.scaled_dot_product_attention(*split)
            return o.transpose(1, 2).reshape(s.batch, tokens, s.width)

        flop = 4.0 * s.batch * tokens * tokens * s.width
        at = f"{s.batch}x{tokens}, {s.heads} heads of {s.width // s.heads}"
        yield from b.both("attention", at, form, leaves, (flop, 2 * flop), "TFLOP/s")


def linear(b: Bench) -> Iterator[Op]:
    s = b.sizes
    for k, n in ((s.width, s.width), (s.width, 3 * s.width), (s.width, s.mlp), (s.mlp, s.width)):
        x, weight, bias = b.random(s.batch, s.tokens, k, grad=True), b.random(n, k), b.random(n)
        flop = 2.0 * s.rows * k * n
        yield from b.both("linear", f"{s.rows}x{k} to {n}", lambda x=x, w=weight, c=bias: F.linear(x, w, c), [x],
                          (flop, flop), "TFLOP/s")


def lora_linear(b: Bench) -> Iterator[Op]:
    """peft's layer: the frozen product, then x·Aᵀ, then ·Bᵀ, then the sum; adapters in f32 under autocast."""
    from peft import LoraConfig, inject_adapter_in_model
    s = b.sizes
    for parts in (1, 3):
        layers = nn.ModuleDict({f"part{i}": nn.Linear(s.width, s.width) for i in range(parts)}).to(b.dtype)
        targets = list(layers)
        layers = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets), layers)
        layers = layers.to(b.device)
        trained = [p for p in layers.parameters() if p.requires_grad]
        for p in trained:
            p.data = 0.05 * torch.randn(p.shape, device=b.device)
        x = b.random(s.batch, s.tokens, s.width, grad=True)

        def form(x=x, layers=layers):
            with b.autocast():
                return tuple(layer(x) for layer in layers.values())

        frozen, skinny = 2.0 * s.rows * s.width * s.width, 2.0 * s.rows * s.width * RANK
        at = f"{s.rows}x{s.width} to {parts * s.width}, rank {RANK}"
        yield from b.both("lora_linear", at, form, [x, *trained],
                          (parts * (frozen + 2 * skinny), parts * (frozen + 4 * skinny)), "TFLOP/s")


def patch_embed(b: Bench) -> Iterator[Op]:
    s = b.sizes
    pixels = torch.randint(0, 256, (s.batch, 3, s.image, s.image), dtype=torch.uint8, device=b.device)
    weight, tokens = b.random(s.width, 3, s.patch, s.patch), (s.image // s.patch) ** 2 + 1
    one, position = b.random(s.width), b.random(tokens, s.width)
    mean, std = (torch.rand(1, 3, 1, 1, device=b.device) + 0.5 for _ in range(2))
    scale, shift = b.random(s.width), b.random(s.width)

    @torch.no_grad()
    def form():
        images = ((pixels.float() / 255 - mean) / std).to(b.dtype)
        patches = F.conv2d(images, weight, stride=s.patch).flatten(2).transpose(1, 2)
        x = torch.cat([one.expand(s.batch, 1, -1), patches], 1) + position
        return F.layer_norm(x, (s.width,), scale, shift, 1e-5)

    flop = 2.0 * s.batch * (tokens - 1) * 3 * s.patch ** 2 * s.width
    yield Op("patch_embed", f"{list(pixels.shape)} to {s.width}", form, flop, "TFLOP/s")


def head_loss(b: Bench) -> Iterator[Op]:
    """Normalised features, both logits, both cross entropies; gradients of the head and of the features."""
    s = b.sizes
    x = b.random(s.batch, s.features, dtype=torch.float32, grad=True)
    head = nn.Linear(s.features, s.classes).to(b.device)
    text = F.normalize(b.random(s.classes, s.features, dtype=torch.float32), dim=-1)
    labels = torch.randint(0, s.classes, (s.batch,), device=b.device)

    def form():
        with b.autocast():
            f = F.normalize(x, dim=-1)
            by_text = math.exp(2.6592) * F.linear(f, text)
            return F.cross_entropy(head(f), labels) + 0.3 * F.cross_entropy(by_text, labels)

    yield from b.both("head_loss", f"{s.batch}x{s.features}, {s.classes} classes", form,
                      [x, *head.parameters()], (None, None))


def adamw(b: Bench) -> Iterator[Op]:
    """Unscaling, the test for inf and nan and the update of every adapter and the head; always f32."""
    s = b.sizes
    shapes = [shape for _ in range(4 * s.layers) for shape in ((RANK, s.width), (s.width, RANK))]
    values = [0.05 * torch.randn(shape, device=b.device) for shape in shapes]
    head = [torch.randn(s.classes, s.features, device=b.device), torch.randn(s.classes, device=b.device)]
    for p in values + head:
        p.requires_grad_()
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW([dict(params=head, lr=1e-3, weight_decay=1e-4),
                                   dict(params=values, lr=1e-4, weight_decay=1e-2)], fused=True)
    scaler = torch.amp.GradScaler(b.device.type, init_scale=1.0)
    scaler.scale(torch.zeros((), device=b.device))

    def form():
        scaler.step(optimizer)
        scaler.update()
        return head[0]

    count = sum(p.numel() for p in values + head)
    # Value, gradient and both moments are read, all but the gradient written.
    yield Op("adamw", f"{count} values in {len(values + head)} tensors", form, 7.0 * 4 * count)


def copy(b: Bench) -> Iterator[Op]:
    """The bandwidth of this device, bytes read plus bytes written."""
    a = torch.randint(0, 256, (b.sizes.copy_bytes,), dtype=torch.uint8, device=b.device)
    c = torch.empty_like(a)
    yield Op("copy", f"{b.sizes.copy_bytes >> 20} MiB", lambda: c.copy_(a), 2.0 * b.sizes.copy_bytes)


def product(b: Bench) -> Iterator[Op]:
    """The best rate of products on this device."""
    n = b.sizes.square
    x, w, y = b.random(n, n), b.random(n, n), b.random(n, n)
    yield Op("product", f"{n}x{n} to {n}", lambda: torch.mm(x, w.t(), out=y), 2.0 * n ** 3, "TFLOP/s")


# The ceilings first: all other rates are read against them.
OPS = {f.__name__: f for f in
       (copy, product, linear, lora_linear, attention, layer_norm, activation, patch_embed, head_loss, adamw)}
# What these work on, whatever the type of the activations.
ONE_TYPE = {"copy": "u8", "adamw": "f32"}


# ---------------------------------------------------------------- timing


class Timer:
    def __init__(self, device: torch.device, reps: int):
        self.device, self.reps, self.on_gpu = device, reps, device.type == "cuda"
        if self.on_gpu:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self.buffer = torch.empty(max(FLUSH_BYTES, 4 * cache), dtype=torch.uint8, device=device)

    def seconds(self, run: Callable[[], object], flush: bool) -> list[float]:
        sleep_s = self.warm_up(run)
        times = []
        for _ in range(self.reps):
            clock = Clock(self.device)
            if flush and self.on_gpu:
                self.buffer.fill_(1)
            if self.on_gpu:
                torch.cuda._sleep(int(sleep_s * SLEEP_CYCLES_PER_S))
            clock.mark()
            run()
            clock.mark()
            times += clock.seconds()
        return times

    def warm_up(self, run: Callable[[], object]) -> float:
        """Seconds that the device sleeps so that the host is ahead: twice what enqueueing takes."""
        host = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            host.append(time.perf_counter() - start)
            if self.on_gpu:
                torch.cuda.synchronize()
        return 2 * min(host[1:]) + 50e-6


def measured(timer: Timer, op: Op, dtype: str) -> Iterator[dict]:
    results = op.run()
    for result in results if isinstance(results, tuple) else (results,):
        if result.is_floating_point() and not result.isfinite().all():
            raise RuntimeError(f"{op.name} at {op.at}: the result is not finite")
    for cache in ("flushed", "warm") if timer.on_gpu else ("warm",):
        found = percentiles(timer.seconds(op.run, cache == "flushed"))
        entry = {"op": op.name, "at": op.at, "dtype": dtype, "l2": cache, **found}
        if op.amount is not None:
            scale = 1e9 if op.unit == "GB/s" else 1e12
            entry |= {"rate": op.amount / found["p50_s"] / scale, "unit": op.unit}
        yield entry


def measure(args, timer: Timer, dtype: str, name: str, entries: list[dict]) -> None:
    """All sizes of one operation; an entry with the problem where one fails."""
    sizes = replace(TINY if args.model_size == "tiny" else VIT_B_32, batch=args.batch_size)
    bench = Bench(timer.device, dtype, sizes)
    try:
        for op in OPS[name](bench):
            for entry in measured(timer, op, dtype):
                entries.append(entry)
                print(line(entry), flush=True)
    except Exception as problem:
        traceback.print_exc()
        entries.append({"op": name, "dtype": dtype, "problem": f"{type(problem).__name__}: {problem}"})
        print(line(entries[-1]), flush=True)


def line(entry: dict) -> str:
    if "problem" in entry:
        return f"{entry['op']:22} {entry['dtype']:5} failed: {entry['problem'].splitlines()[0]}"
    rate = f"{entry['rate']:10.1f} {entry['unit']}" if "rate" in entry else ""
    return (f"{entry['op']:22} {entry['at']:34} {entry['dtype']:5} {entry['l2']:8} "
            f"{entry['p50_s'] * 1e6:10.2f} us {rate}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda t: chosen(t, OPS), default=list(OPS), help="of " + ", ".join(OPS))
    parser.add_argument("--dtypes", type=lambda t: chosen(t, DTYPES), default=list(DTYPES))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--model-size", choices=("vit-b-32", "tiny"), default="vit-b-32")
    parser.add_argument("--reps", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write all measurements here, as they come")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no GPU here; --device cpu tries the script out")
    # f32 means f32, as in the engine.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    timer, entries = Timer(args.device, args.reps), []
    settings = {"batch_size": args.batch_size, "reps": args.reps, "model_size": args.model_size,
                "flush_mib": timer.buffer.numel() / 2**20 if timer.on_gpu else None}
    report = {"machine": machine(args.device), "settings": settings, "ops": entries}
    for dtype in args.dtypes:
        for name in args.only:
            if name in ONE_TYPE and dtype != args.dtypes[0]:
                continue
            measure(args, timer, ONE_TYPE.get(name, dtype), name, entries)
            if args.json:
                write_json(args.json, report)
    if failed := sum("problem" in entry for entry in entries):
        sys.exit(f"{failed} operations failed")


if __name__ == "__main__":
    main()
