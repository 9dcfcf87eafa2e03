"""A whole training step of this engine against PyTorch's, as a table of errors.

    python tools/parity.py --size full --engine target/release/engine
    python tools/parity.py --variant clip_lora --templates 1      # fewer prompts take less memory
    python tools/parity.py --precision bf16                       # weights that bf16 has, and both in bf16

Makes a model with random weights and a reference (tools/reference.py), lets `engine check --reference` repeat
it, and prints the largest error of every kind of quantity as Markdown. Errors are against PyTorch in f64 and
relative to the largest value of the tensor (adapters after the last step: as vectors); beside them stands
PyTorch's own, f32 or bf16 against f64. Exit status 1 when a quantity is beyond its bound.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from reference import PRECISIONS, PRESETS, SIZES, Settings, write


def check(engine: Path, reference: Path, precision: str) -> list[dict]:
    """The rows of the engine's table."""
    out = reference.with_suffix(".errors.json")
    command = [engine, "check", "--reference", reference, "--model", reference.parent, "--json", out,
               "--precision", precision]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    # The engine leaves with 1 when a bound is passed, too; then there is a table to print.
    if not out.exists():
        sys.exit(f"{engine}: check left with status {done.returncode} and wrote no {out.name}; see its message above")
    return json.loads(out.read_text())["rows"]


def kind(name: str) -> str:
    """The name without layer and target: "warm.grad lora.3.q_proj.A" is a "gradient of LoRA A, from B ≠ 0"."""
    start = ", from B ≠ 0" if name.startswith("warm.") else ""
    name = name.removeprefix("warm.").replace("text_lora.", "text lora.")
    name = re.sub(r"lora\.\d+\.\w+\.([AB])", r"LoRA \1", name)
    name = re.sub(r"lora\.\d+\.\w+", "LoRA A and B together", name)
    return name.replace("grad ", "gradient of ") + start


def table(rows: list[dict], precision: str) -> str:
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        kinds.setdefault(kind(row["name"]), []).append(row)
    lines = [f"| quantity | tensors | largest error | bound | PyTorch {precision} | |", "|---|---:|---:|---:|---:|---|"]
    digits = ".0e" if precision == "f32" else ".1e"
    for name, group in kinds.items():
        peers = [row["pytorch_error"] for row in group if row["pytorch_error"] is not None]
        worst = max(group, key=lambda row: row["error"] / row["bound"])
        verdict = "ok" if all(row["passed"] for row in group) else "**beyond the bound**"
        peer = f"{max(peers):.1e}" if peers else ""
        lines.append(f"| {name} | {len(group)} | {worst['error']:.1e} | {worst['bound']:{digits}} | {peer} | {verdict} |")
    return "\n".join(lines)


def run(args: argparse.Namespace, directory: Path) -> int:
    names = ("templates", "clip_grad_norm", "steps")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    settings = Settings(**PRESETS[args.variant] | given | dict(size=args.size, seed=args.seed, precision=args.precision))
    rows = check(args.engine, write(settings, directory, args.variant), args.precision)
    if not rows:
        sys.exit(f"{args.engine}: compared nothing")
    print(table(rows, args.precision))
    return int(not all(row["passed"] for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=Path("target/release/engine"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--precision", choices=PRECISIONS, default="f32", help="of the engine, and of PyTorch beside it")
    parser.add_argument("--variant", choices=PRESETS, default="lora")
    parser.add_argument("--templates", type=int, help="prompts of a class (4)")
    parser.add_argument("--clip-grad-norm", type=float, help="length to which gradients are scaled down")
    parser.add_argument("--steps", type=int, help="AdamW steps (5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="make the files here, and leave them")
    args = parser.parse_args()
    if not args.engine.is_file():
        parser.error(f"--engine {args.engine}: no such file; build it with `cargo build --release`")
    args.engine = args.engine.resolve()
    torch.set_num_threads(args.threads)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        raise SystemExit(run(args, args.keep))
    with tempfile.TemporaryDirectory() as directory:
        raise SystemExit(run(args, Path(directory)))


if __name__ == "__main__":
    main()
