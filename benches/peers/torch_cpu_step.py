"""One training step and one evaluation batch on the CPU: PyTorch against the engine, in turn.

    python benches/peers/torch_cpu_step.py --engine target/release/engine --rounds 3 --out cpu.json

CLIP ViT-B/32 with random weights, f32, LoRA on q, k, v and out of every vision block, a linear head, loss
CE(head) + 0.3 CE(text), AdamW. PyTorch runs eagerly with transformers' SDPA attention, in f32 and with bf16 autocast.
Each round starts a fresh process per measurement (PyTorch training and evaluation in each type, the engine's `bench
step`), so that drift of the machine falls on all. Reported: the median over rounds of each round's median, and the ratio of images per second.
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
TYPES = {"torch": "f32", "torch_bf16": "bf16"}
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
            return self.base(x) + self.scale * F.linear(F.linear(x, self.a), self.b)

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(attn_implementation="sdpa")).requires_grad_(False)
    for layer in tower.vision_model.encoder.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(layer.self_attn, name, LoraLinear(getattr(layer.self_attn, name)))
    tower.train(args.child == "train")
    size, width = tower.config.image_size, tower.config.projection_dim
    head = nn.Linear(width, args.classes)
    text = F.normalize(torch.randn(args.classes, width), dim=-1)
    pixels = torch.randn(args.batch_size, 3, size, size)
    labels = torch.randint(0, args.classes, (args.batch_size,))
    adapters = [p for p in tower.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW([dict(params=head.parameters(), lr=1e-3, weight_decay=1e-4),
                                   dict(params=adapters, lr=1e-4, weight_decay=1e-2)])

    def logits():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.type == "bf16"):
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


def measure_torch(args: argparse.Namespace, of_type: str) -> dict:
    measured = {}
    for mode in MODES:
        command = [sys.executable, __file__, "--child", mode, "--type", of_type, "--batch-size", args.batch_size, "--reps", args.reps,
                   "--threads", args.threads, "--classes", args.classes, "--rank", args.rank, "--alpha", args.alpha]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}
        child = json.loads(checked(command, env=environment).splitlines()[-1])
        measured[mode] = percentiles(child["seconds"]) | {"peak_rss_mib": child["peak_rss_mib"]}
        measured["versions"] = child["versions"]
    return measured


def measure_engine(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "step.json"
        command = [args.engine, "bench", "step", "--device", "cpu", "--model-size", "vit-b-32",
                   "--batch-size", args.batch_size, "--json", path]
        checked(command, env={**os.environ, "RAYON_NUM_THREADS": str(args.threads)})
        return json.loads(path.read_text())


def summarise(rounds: list[dict], batch: int) -> dict:
    """Medians over the rounds, and the engine's throughput over PyTorch's."""
    middle = lambda pick: statistics.median(pick(r) for r in rounds)
    modes = {}
    for mode in MODES:
        seconds = {who: middle(lambda r: r[who][mode]["p50_s"]) for who in (*TYPES, "engine")}
        rate = {who: batch / s for who, s in seconds.items()}
        ratios = {who: [r[who][mode]["p50_s"] / r["engine"][mode]["p50_s"] for r in rounds] for who in TYPES}
        modes[mode] = {"seconds": seconds, "images_per_s": rate, "ratio_of_each_round": ratios}
    # Training holds more than evaluation; the engine's process runs both.
    peak = {who: middle(lambda r: max(r[who][m]["peak_rss_mib"] for m in MODES)) for who in TYPES}
    peak["engine"] = middle(lambda r: r["engine"]["peak_rss_mib"])
    return {**modes, "peak_rss_mib": peak}


def table(summary: dict) -> str:
    lines = ["| | PyTorch f32 | PyTorch bf16 | engine f32 | engine / PyTorch f32 | engine / PyTorch bf16 |",
             "|---|---:|---:|---:|---:|---:|"]
    ratio = lambda engine, torch: f"{engine / torch:.2f}"
    for mode, title in (("train", "training step, images/s"), ("eval", "evaluation, images/s")):
        row = summary[mode]
        rate, each = row["images_per_s"], row["ratio_of_each_round"]
        cells = [f"{rate[who]:.2f}" for who in (*TYPES, "engine")]
        for who in TYPES:
            rounds = f" ({min(each[who]):.2f} to {max(each[who]):.2f})"
            cells.append(ratio(rate["engine"], rate[who]) + rounds)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    peak = summary["peak_rss_mib"]
    cells = [f"{peak[who]:.0f}" for who in (*TYPES, "engine")] + [ratio(peak["engine"], peak[who]) for who in TYPES]
    lines.append("| peak memory, MiB | " + " | ".join(cells) + " |")
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
    parser.add_argument("--type", choices=TYPES.values(), default="f32", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return run_child(args)
    if not args.engine.is_file():
        parser.error(f"--engine {args.engine}: no such file; build it with `cargo build --release`")
    args.engine = args.engine.resolve()
    rounds = []
    for number in range(1, args.rounds + 1):
        peers = {who: measure_torch(args, of_type) for who, of_type in TYPES.items()}
        rounds.append({**peers, "engine": measure_engine(args)})
        times = ", ".join(f"{who} {mode} {rounds[-1][who][mode]['p50_s']:.2f} s" for mode in MODES for who in rounds[-1])
        print(f"round {number} of {args.rounds}: {times}", file=sys.stderr)
    summary = summarise(rounds, args.batch_size)
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k not in ("engine", "out", "child", "type")}
        machine = {"processor": processor(), "cores": os.cpu_count()}
        result = {"settings": settings, "machine": machine, "summary": summary, "rounds": rounds}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(summary))


if __name__ == "__main__":
    main()
