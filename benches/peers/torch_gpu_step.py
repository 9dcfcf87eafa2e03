"""Training steps and evaluations of PyTorch on a GPU: what `engine bench step --device cuda` is compared with.

    python benches/peers/torch_gpu_step.py --json step.json
    python benches/peers/torch_gpu_step.py --variants eager,max-autotune --batch-sizes 32 --budget 120

CLIP ViT-B/32 as transformers has it, random weights, peft's LoRA on q, k, v and out of every vision layer, a
linear head, loss CE(head) + 0.3 CE(text) with constant text features, fused AdamW, autocast with loss scaling.
Images come as u8 and are normalised on the device. Every variant runs in a process of its own, within a budget of
seconds; one that does not finish in time is listed as such, with what it had measured until then.

Timed, per variant: training steps on images that are on the device already (`resident`), the same with the batch
copied from pinned memory inside the step (`uploaded`), and evaluation with the adapters merged into the weights.
Times are those between events on the device's stream, one step to the next, gaps included.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from common import Clock, chosen, machine, percentiles, write_json

# Of a step at batch 32 without savings, by torch.utils.flop_counter on this model: 282.2 forward, 1.9 for the
# adapters, 275.8 backward. Given, not measured here.
GFLOP_AT_32 = {"train": 559.8, "eval": 282.2}
WARM_UP = 10
# Batches that the steps take in turn, so that no step finds its own input in the cache.
ROTATION = 4


@dataclass(frozen=True)
class Variant:
    title: str
    attention: str = "sdpa"
    compile: str | None = None
    # Frozen weights kept in autocast's type; else they are in f32 and autocast converts them in every step.
    half_weights: bool = False
    # Forward, backward, loss scaling and optimizer as one CUDA graph.
    one_graph: bool = False


# In the order they run: when time is short, the last ones are left out (and listed).
VARIANTS = {
    "eager": Variant("eager, eager attention", attention="eager"),
    "sdpa": Variant("eager, SDPA"),
    "eager-half": Variant("eager, SDPA, half weights", half_weights=True),
    "half-graph": Variant("eager, SDPA, half weights, the whole step as one CUDA graph", half_weights=True,
                          one_graph=True),
    "compile": Variant("SDPA, torch.compile", compile="default"),
    "max-autotune": Variant("SDPA, torch.compile(max-autotune), CUDA graphs", compile="max-autotune"),
    "one-graph": Variant(
        "SDPA, torch.compile(max-autotune), half weights, the whole step as one CUDA graph",
        compile="max-autotune-no-cudagraphs", half_weights=True, one_graph=True),
    "reduce-overhead": Variant("SDPA, torch.compile(reduce-overhead)", compile="reduce-overhead"),
}

SIZES = {
    "vit-b-32": dict(),
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     image_size=32, patch_size=16, projection_dim=32),
}


# ---------------------------------------------------------------- the model, in its own process


def vision_tower(args, variant, compute):
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(attn_implementation=variant.attention, **SIZES[args.model_size])
    tower = CLIPVisionModelWithProjection(config)
    if variant.half_weights and compute is not None:
        tower = tower.to(compute)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0,
                      target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
    tower = inject_adapter_in_model(lora, tower)
    # peft gives adapters the type of the weights they sit on; the recipe has them in f32.
    for adapter in trained(tower):
        adapter.data = adapter.data.to(torch.float32)
    return tower


def trained(module):
    return [p for p in module.parameters() if p.requires_grad]


class Batches:
    """u8 images that show their class, in pinned memory and on the device, and their labels."""

    def __init__(self, args, side):
        import torch
        draw = torch.Generator().manual_seed(1)
        coarse = torch.randint(0, 256, (args.classes, 3, 8, 8), generator=draw).float()
        patterns = torch.nn.functional.interpolate(coarse, size=(side, side))
        self.host = []
        for _ in range(args.rotation):
            labels = torch.randint(0, args.classes, (args.batch_size,), generator=draw)
            noise = 20 * torch.randn(args.batch_size, 3, side, side, generator=draw)
            images = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
            pinned = args.device.type == "cuda"
            self.host.append(tuple(t.pin_memory() if pinned else t for t in (images, labels)))
        self.device = [tuple(t.to(args.device) for t in batch) for batch in self.host]


def classifier(args, variant, compute):
    """Tower, head and text features as one module: what it holds stays in place, so CUDA graphs need not copy it."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy, linear, normalize

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = vision_tower(args, variant, compute)
            width = self.tower.config.projection_dim
            self.head = nn.Linear(width, args.classes)
            # The scale is that of CLIP before training: exp(2.6592).
            self.register_buffer("text", math.exp(2.6592) * normalize(torch.randn(args.classes, width), dim=-1))
            self.register_buffer("mean", torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1))

        def logits(self, pixels):
            images = (pixels.float() / 255 - self.mean) / self.std
            features = normalize(self.tower(pixel_values=images).image_embeds, dim=-1)
            return self.head(features), linear(features, self.text)

        def losses(self, pixels, labels):
            with torch.autocast(args.device.type, compute, enabled=compute is not None):
                by_head, by_text = self.logits(pixels)
                return cross_entropy(by_head, labels) + 0.3 * cross_entropy(by_text, labels), by_head, by_text

        def loss(self, pixels, labels):
            return self.losses(pixels, labels)[0]

        def counts(self, pixels, labels):
            """Loss, and how many images either classifier gets right."""
            loss, by_head, by_text = self.losses(pixels, labels)
            right = [(logits.argmax(-1) == labels).sum() for logits in (by_head, by_text)]
            return torch.stack([loss.float(), *(count.float() for count in right)])

    return Classifier().to(args.device)


class Learner:
    """The steps to be timed."""

    def __init__(self, args, variant):
        import torch
        torch.manual_seed(0)
        compute = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": None}[args.dtype]
        self.variant, self.model = variant, classifier(args, variant, compute).train()
        head = self.model.head
        groups = [dict(params=list(head.parameters()), lr=1e-3, weight_decay=1e-4),
                  dict(params=trained(self.model.tower), lr=1e-4, weight_decay=1e-2)]
        self.optimizer = torch.optim.AdamW(groups, fused=True, capturable=variant.one_graph)
        self.scaler = torch.amp.GradScaler(args.device.type, enabled=args.dtype == "f16")
        wrap = torch.compile if variant.compile else lambda f, **_: f
        self.loss = wrap(self.model.loss, mode=variant.compile)
        self.counts = wrap(self.model.counts, mode=variant.compile)

    def train(self, pixels, labels):
        import torch
        torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(pixels, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def evaluate(self, pixels, labels):
        import torch
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            return self.counts(pixels, labels)

    def merge(self) -> None:
        """Adapters into the weights, as the engine does before it evaluates."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        self.model.eval()

    def skipped(self, calls: int) -> int:
        """Steps of `calls` that loss scaling left out."""
        return calls - round(self.optimizer.state[self.model.head.bias]["step"].item())


def captured(step, example):
    """`step` as one CUDA graph over inputs of its own, into which every call copies."""
    import torch
    inputs = [t.clone() for t in example]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(*inputs)

    def replay(*batch):
        for target, source in zip(inputs, batch):
            target.copy_(source, non_blocking=True)
        graph.replay()
        return result

    return replay, 3


# ---------------------------------------------------------------- measuring, in the same process


class Measurement:
    """What a variant has shown so far, written after every part of it."""

    def __init__(self, args, variant):
        self.args, self.learner = args, Learner(args, variant)
        self.batches = Batches(args, self.learner.model.tower.config.image_size)
        tensors = trained(self.learner.model)
        self.result = {"trained_tensors": len(tensors), "trained_parameters": sum(p.numel() for p in tensors)}

    def note(self, **parts) -> None:
        self.result |= parts
        write_json(self.args.child_json, {"machine": machine(self.args.device), **self.result})

    def synchronize(self) -> None:
        if self.args.device.type == "cuda":
            import torch
            torch.cuda.synchronize()

    def first(self, step):
        """`step` ready to be timed; seconds of its first call, which compiles, and until it is warm; its calls."""
        start = time.perf_counter()
        step(*self.batches.device[0])
        self.synchronize()
        seconds, calls = time.perf_counter() - start, 1
        if self.learner.variant.one_graph:
            step, more = captured(step, self.batches.device[0])
            calls += more
        for i in range(self.args.warm_up):
            step(*self.batches.device[i % self.args.rotation])
        self.synchronize()
        return step, (seconds, time.perf_counter() - start), calls + self.args.warm_up

    def timed(self, step, upload: bool):
        """Percentiles of the steps, and what each returned, kept on the device meanwhile."""
        import torch
        args, returned = self.args, []
        buffers = [t.clone() for t in self.batches.device[0]]
        clock, start = Clock(args.device), time.perf_counter()
        clock.mark()
        for i in range(args.steps):
            batch = self.batches.device[i % args.rotation]
            if upload:
                for buffer, source in zip(buffers, self.batches.host[i % args.rotation]):
                    buffer.copy_(source, non_blocking=True)
                batch = buffers
            returned.append(step(*batch).clone())
            clock.mark()
        seconds = clock.seconds()
        wall = (time.perf_counter() - start) / args.steps
        found = percentiles(seconds)
        found |= {"images_per_s": args.batch_size / found["p50_s"], "wall_s_per_step": wall, "steps": args.steps}
        return found, torch.stack(returned).float().cpu()

    def train(self) -> None:
        step, (first_s, warm_s), calls = self.first(self.learner.train)
        self.note(first_train_step_s=first_s, train_warm_after_s=warm_s)
        self.forget_peak()
        resident, losses = self.timed(step, upload=False)
        resident |= self.rate("train", resident)
        self.note(train_resident=resident, memory=self.peak(), loss=self.falling(losses))
        uploaded, more = self.timed(step, upload=True)
        self.note(train_uploaded=uploaded, loss_uploaded=finite(more))
        calls += 2 * self.args.steps
        self.note(skipped_steps=self.learner.skipped(calls), loss_scale=self.learner.scaler.get_scale())
        self.moved()

    def evaluate(self) -> None:
        start = time.perf_counter()
        self.learner.merge()
        self.synchronize()
        merge_s = time.perf_counter() - start
        step, (first_s, warm_s), _ = self.first(self.learner.evaluate)
        self.forget_peak()
        resident, counts = self.timed(step, upload=False)
        resident |= self.rate("eval", resident)
        finite(counts)
        self.note(merge_s=merge_s, first_eval_s=first_s, eval_warm_after_s=warm_s, eval_resident=resident,
                  eval_memory=self.peak(), graph_breaks=graph_breaks())
        self.note(eval_uploaded=self.timed(step, upload=True)[0])

    def rate(self, what: str, found: dict) -> dict:
        if self.args.model_size != "vit-b-32":
            return {}
        gflop = GFLOP_AT_32[what] * self.args.batch_size / 32
        return {"gflop": gflop, "tflops_per_s": gflop / found["p50_s"] / 1e3}

    def falling(self, losses) -> dict:
        """First and last loss over the same batches; an error where training does not train."""
        finite(losses)
        first, last = (part.mean().item() for part in (losses[:self.args.rotation], losses[-self.args.rotation:]))
        if not last < first:
            raise RuntimeError(f"the loss does not fall over the timed steps: {first:.4f} to {last:.4f}")
        return {"first": first, "last": last}

    def moved(self) -> None:
        # B starts at zero: what is still zero was never trained.
        names = [n for n, p in self.learner.model.named_parameters()
                 if p.requires_grad and "lora_B" in n and not p.detach().any()]
        if names:
            raise RuntimeError(f"{len(names)} adapters have not moved, the first is {names[0]}")

    def forget_peak(self) -> None:
        if self.args.device.type == "cuda":
            import torch
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict | None:
        """Of the timed steps. What CUDA graphs use counts as reserved, not as allocated; `device` is all that
        is taken on the card, the context and libraries included."""
        if self.args.device.type != "cuda":
            return None
        import torch
        free, total = torch.cuda.mem_get_info()
        mib = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
               "device": total - free}
        return {f"{what}_mib": count / 2**20 for what, count in mib.items()}


def finite(losses) -> float:
    if not losses.isfinite().all():
        raise RuntimeError("a loss of the timed steps is not finite")
    return losses[-1].flatten()[0].item()


def graph_breaks() -> int:
    from torch._dynamo.utils import counters
    return sum(counters["graph_break"].values())


def run_child(args: argparse.Namespace) -> None:
    import torch
    args.device = torch.device(args.device)
    args.rotation = min(ROTATION, max(1, args.steps // 2))
    # f32 means f32, as in the engine.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    variant = VARIANTS[args.child]
    if variant.one_graph and args.device.type != "cuda":
        sys.exit("a CUDA graph needs --device cuda")
    try:
        measurement = Measurement(args, variant)
        measurement.train()
        measurement.evaluate()
        measurement.note(complete=True)
    except Exception as problem:
        traceback.print_exc()
        lines = str(problem).strip().splitlines() or [""]
        sys.exit(f"{type(problem).__name__}: {lines[0]}")


# ---------------------------------------------------------------- one process after the other


def measure(args, name: str, batch: int, dtype: str, seconds: float, folder: Path) -> dict:
    """One variant in a process of its own; always an entry, whatever becomes of the process."""
    entry = {"variant": name, "title": VARIANTS[name].title, "batch_size": batch, "dtype": dtype}
    if seconds < 5:
        return entry | {"status": "not started", "problem": "no time left"}
    path = folder / f"{name}-{batch}-{dtype}.json"
    command = [sys.executable, __file__, "--child", name, "--child-json", path, "--batch-sizes", batch,
               "--dtypes", dtype, "--device", args.device, "--model-size", args.model_size,
               "--steps", args.steps, "--warm-up", args.warm_up, "--classes", args.classes]
    errors = folder / f"{path.stem}.stderr"
    start = time.monotonic()
    with errors.open("w") as sink:
        # Its own session: torch.compile starts workers, which must end with it.
        child = subprocess.Popen([str(c) for c in command], stdout=sink, stderr=sink, start_new_session=True,
                                 env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        try:
            status = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(child)
    entry |= {"wall_s": time.monotonic() - start} | (json.loads(path.read_text()) if path.exists() else {})
    if status == 0 and entry.pop("complete", False):
        return entry | {"status": "ok"}
    if status is None:
        return entry | {"status": "not finished", "problem": f"stopped after its {seconds:.0f} s"}
    said = errors.read_text(errors="replace")
    sys.stderr.write(said[-4000:])
    last = (said.strip().splitlines() or ["said nothing"])[-1]
    return entry | {"status": "failed", "problem": f"status {status}: {last}"}


def end(child: subprocess.Popen) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def table(entries: list[dict]) -> str:
    """One line each; what was not measured is a dash, and the last column says why."""
    head = ["variant", "batch", "type", "step ms", "images/s", "uploaded", "eval images/s", "peak MiB", "first s", ""]
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|" + "---:|" * 6 + "---|"]
    for entry in entries:
        def cell(part, key, form, scale=1.0):
            return form.format(entry[part][key] * scale) if entry.get(part) else "–"
        first = entry.get("first_train_step_s")
        cells = [entry["variant"], str(entry["batch_size"]), entry["dtype"],
                 cell("train_resident", "p50_s", "{:.3f}", 1e3), cell("train_resident", "images_per_s", "{:.0f}"),
                 cell("train_uploaded", "images_per_s", "{:.0f}"), cell("eval_resident", "images_per_s", "{:.0f}"),
                 cell("memory", "reserved_mib", "{:.0f}"), "–" if first is None else f"{first:.1f}",
                 entry["status"] if entry["status"] == "ok" else f"{entry['status']}: {entry['problem']}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=lambda t: chosen(t, VARIANTS), default=list(VARIANTS),
                        help="of " + ", ".join(VARIANTS))
    parser.add_argument("--batch-sizes", type=lambda t: [int(n) for n in t.split(",")], default=[32, 256])
    parser.add_argument("--dtypes", type=lambda t: chosen(t, ("f16", "bf16", "f32")), default=["f16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model-size", choices=SIZES, default="vit-b-32")
    parser.add_argument("--classes", type=int, default=102)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each kind")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="steps before, after the first one")
    parser.add_argument("--budget", type=float, default=180, help="seconds for a variant, compilation included")
    parser.add_argument("--total", type=float, default=math.inf, help="seconds for all of them")
    parser.add_argument("--compile-cache", type=Path, help="keep what torch.compile makes here; default: a new folder")
    parser.add_argument("--json", type=Path, help="write all measurements here, after each variant")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--child-json", type=Path, help=argparse.SUPPRESS)
    return parser


def run_all(args, folder: Path) -> list[dict]:
    cache = args.compile_cache or folder / "compile"
    found_full = cache.is_dir() and any(cache.iterdir())
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")
    planned = ("variants", "batch_sizes", "dtypes")
    settings = {k: getattr(args, k)
                for k in (*planned, "device", "model_size", "classes", "steps", "warm_up", "budget")}
    settings |= {"images": "u8 [B, 3, H, W], normalised on the device", "evaluation": "adapters merged",
                 "compile_cache": "filled before" if found_full else "empty before the first compiled variant"}
    deadline = time.monotonic() + args.total
    report = {"settings": settings, "gflop_at_batch_32": GFLOP_AT_32, "machine": None, "variants": []}
    if args.json:
        write_json(args.json, report)
    for batch in args.batch_sizes:
        for dtype in args.dtypes:
            for name in args.variants:
                seconds = min(args.budget, deadline - time.monotonic())
                entry = measure(args, name, batch, dtype, seconds, folder)
                report["machine"] = entry.pop("machine", None) or report["machine"]
                report["variants"].append(entry)
                if args.json:
                    write_json(args.json, report)
                print(table([entry]).splitlines()[-1], file=sys.stderr, flush=True)
    return report["variants"]


def main() -> None:
    args = arguments().parse_args()
    if args.child:
        args.batch_size, args.dtype = args.batch_sizes[0], args.dtypes[0]
        return run_child(args)
    # So that a time limit from outside ends the child as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        entries = run_all(args, Path(folder))
    print(table(entries))
    if failed := sum(entry["status"] == "failed" for entry in entries):
        sys.exit(f"{failed} of {len(entries)} variants failed")


if __name__ == "__main__":
    main()
