"""One training step and one evaluation batch on the CPU: PyTorch against the engine, in turn.

    python benches/peers/torch_cpu_step.py --engine target/release/engine --rounds 3 --out cpu.json

CLIP ViT-B/32 with random weights, LoRA on q, k, v and out of every vision block, a linear head, loss
CE(head) + 0.3 CE(text), AdamW. PyTorch runs eagerly with transformers' SDPA attention, in f32, with bf16 autocast, and with
frozen weights and activations in bf16; the engine in f32 and, where the processor has products for it, in bf16. Each round
starts a fresh process per measurement (PyTorch training and evaluation in each form, the engine's `bench step` in each
type), so that drift of the machine falls on all. Reported: the median over rounds of each round's median, and the
ratios of images per second and of peak memory, within each round.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODES = ("train", "eval")
FORMS = ("f32", "bf16 autocast", "bf16 weights")
PRECISIONS = ("f32", "bf16")
WARM_UP = 2


# ---------------------------------------------------------------- PyTorch, in its own process


def torch_step(args: argparse.Namespace):
    """The step to be timed, as a function without arguments."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    class LoraLinear(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base, self.scale = base, args.alpha / args.rank
            self.a = nn.Parameter(torch.empty(args.rank, base.in_features))
            self.b = nn.Parameter(torch.zeros(base.out_features, args.rank))
            nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

        def forward(self, x):
            a, b = (self.a, self.b) if whole is None else (self.a.to(whole), self.b.to(whole))
            return self.base(x) + self.scale * F.linear(F.linear(x, a), b)

    whole = torch.bfloat16 if args.form == "bf16 weights" else None
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(attn_implementation="sdpa")).requires_grad_(False)
    tower = tower if whole is None else tower.to(whole)
    for layer in tower.vision_model.encoder.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(layer.self_attn, name, LoraLinear(getattr(layer.self_attn, name)))
    tower.train(args.child == "train")
    size, width = tower.config.image_size, tower.config.projection_dim
    head = nn.Linear(width, args.classes)
    text = F.normalize(torch.randn(args.classes, width), dim=-1)
    pixels = torch.randn(args.batch_size, 3, size, size, dtype=whole)
    labels = torch.randint(0, args.classes, (args.batch_size,))
    adapters = [p for p in tower.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW([dict(params=head.parameters(), lr=1e-3, weight_decay=1e-4),
                                   dict(params=adapters, lr=1e-4, weight_decay=1e-2)])

    def logits():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.form == "bf16 autocast"):
            embedded = tower(pixel_values=pixels).image_embeds
        f = F.normalize(embedded.float(), dim=-1)
        return head(f), math.exp(2.6592) * f @ text.T

    def train():
        optimiser.zero_grad(set_to_none=True)
        by_head, by_text = logits()
        (F.cross_entropy(by_head, labels) + 0.3 * F.cross_entropy(by_text, labels)).backward()
        optimiser.step()

    def evaluate():
        with torch.no_grad():
            logits()

    return {"train": train, "eval": evaluate}[args.child]


def run_child(args: argparse.Namespace) -> None:
    step = torch_step(args)
    seconds = []
    for _ in range(WARM_UP + args.reps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    import torch
    import transformers
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"seconds": seconds[WARM_UP:], "peak_rss_mib": peak, "versions": versions}))


# ---------------------------------------------------------------- rounds


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = lambda q: ordered[round(q * (len(ordered) - 1))]
    return {"p20_s": at(0.2), "p50_s": statistics.median(ordered), "p80_s": at(0.8)}


def checked(command: list, **options) -> str:
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        sys.exit(f"{command[0]}: left with status {done.returncode}; run it by hand: {' '.join(map(str, command))}")
    return done.stdout


def measure_torch(args: argparse.Namespace, form: str) -> dict:
    measured = {}
    for mode in MODES:
        command = [sys.executable, __file__, "--child", mode, "--form", form, "--batch-size", args.batch_size,
                   "--reps", args.reps, "--threads", args.threads, "--classes", args.classes, "--rank", args.rank,
                   "--alpha", args.alpha]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}
        child = json.loads(checked(command, env=environment).splitlines()[-1])
        measured[mode] = percentiles(child["seconds"])
        # Training holds more than evaluation.
        measured["peak_rss_mib"] = max(child["peak_rss_mib"], measured.get("peak_rss_mib", 0))
        measured["versions"] = child["versions"]
    return measured


def measure_engine(args: argparse.Namespace, precision: str) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "step.json"
        command = [args.engine, "bench", "step", "--device", "cpu", "--precision", precision, "--model-size", "vit-b-32",
                   "--batch-size", args.batch_size, "--reps", args.reps, "--json", path]
        checked(command, env={**os.environ, "RAYON_NUM_THREADS": str(args.threads)})
        return json.loads(path.read_text())


def measure(args: argparse.Namespace) -> dict:
    """One measurement of everybody: PyTorch in its forms, the engine in its types, by name."""
    engine = {f"engine {precision}": measure_engine(args, precision) for precision in args.precisions}
    return {**{f"PyTorch {form}": measure_torch(args, form) for form in FORMS}, **engine}


def middle(rounds: list[dict], pick) -> float:
    return statistics.median(pick(r) for r in rounds)


def table(rounds: list[dict], batch: int) -> str:
    names = list(rounds[0])
    peers, engines = ([n for n in names if n.startswith(who)] for who in ("PyTorch", "engine"))
    lines = ["| | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    for mode, title in (("train", "training step"), ("eval", "evaluation")):
        seconds = [middle(rounds, lambda r: r[name][mode]["p50_s"]) for name in names]
        lines.append(f"| {title}, s | " + " | ".join(f"{s:.3f}" for s in seconds) + " |")
        lines.append(f"| {title}, images/s | " + " | ".join(f"{batch / s:.1f}" for s in seconds) + " |")
    peaks = [middle(rounds, lambda r: r[name]["peak_rss_mib"]) for name in names]
    lines.append("| peak memory, MiB | " + " | ".join(f"{peak:.0f}" for peak in peaks) + " |")
    fastest = "the fastest of PyTorch's bf16"
    lines += ["", "| engine to PyTorch | " + " | ".join(peers + [fastest]) + " |", "|---" + "|---:" * (len(peers) + 1) + "|"]
    for engine in engines:
        for mode, title in (("train", "training"), ("eval", "evaluation")):
            best = lambda r: min(r[p][mode]["p50_s"] for p in peers if "bf16" in p)
            picks = [lambda r, p=p: r[p][mode]["p50_s"] for p in peers] + [best]
            each = [[pick(r) / r[engine][mode]["p50_s"] for r in rounds] for pick in picks]
            cells = [f"{statistics.median(e):.2f} ({min(e):.2f} to {max(e):.2f})" for e in each]
            lines.append(f"| {engine}, {title}, times as fast | " + " | ".join(cells) + " |")
        least = lambda r: min(r[p]["peak_rss_mib"] for p in peers if "bf16" in p)
        picks = [lambda r, p=p: r[p]["peak_rss_mib"] for p in peers] + [least]
        cells = [f"{middle(rounds, lambda r: r[engine]['peak_rss_mib'] / pick(r)):.2f}" for pick in picks]
        lines.append(f"| {engine}, share of the memory | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def processor() -> str:
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=Path("target/release/engine"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--classes", type=int, default=102)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--reps", type=int, default=5, help="timed PyTorch steps per process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write all measurements here, as JSON")
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=FORMS, default="f32", help=argparse.SUPPRESS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS,
                        help="of the engine; a processor without products in bf16 has f32 alone")
    args = parser.parse_args()
    if args.child:
        return run_child(args)
    if not args.engine.is_file():
        parser.error(f"--engine {args.engine}: no such file; build it with `cargo build --release`")
    args.engine = args.engine.resolve()
    rounds = []
    for number in range(1, args.rounds + 1):
        rounds.append(measure(args))
        times = ", ".join(f"{who} {mode} {rounds[-1][who][mode]['p50_s']:.2f} s" for mode in MODES for who in rounds[-1])
        print(f"round {number} of {args.rounds}: {times}", file=sys.stderr)
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k not in ("engine", "out", "child", "form")}
        machine = {"processor": processor(), "cores": os.cpu_count()}
        args.out.write_text(json.dumps({"settings": settings, "machine": machine, "rounds": rounds}, indent=1) + "\n")
    print(table(rounds, args.batch_size))


if __name__ == "__main__":
    main()
