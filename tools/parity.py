"""Compares the engine with PyTorch on one training step, ViT-B/32 by default, and prints the errors as Markdown.

    python tools/parity.py --engine target/release/engine [--size full] [--variant lora] [--keep DIR]

Makes a model with random weights and a reference (tools/reference.py), then runs

    engine check --reference FILE --model DIR --json OUT

which repeats the step and writes {"quantities": [{"name": ..., "max_abs": ..., "max_rel": ..., "limit": ...}, ...]}:
the names of the reference file without the precision in front (features, loss, grad.head.weight, warm.grad....);
max_rel is the largest difference over the largest expected value, limit is what the engine allows max_rel to be.
Beside it stands PyTorch's own error, f32 against f64. Exit status 1 when a quantity is beyond its limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from reference import SIZES, VARIANTS, Settings, relative_error, write


def torch_errors(path: Path) -> dict[str, float]:
    """How far PyTorch's f32 is from its f64, by quantity."""
    tensors = load_file(path)
    twin = lambda name: name.replace("f32.", "f64.", 1)
    return {name.replace("f32.", "", 1): relative_error(value, tensors[twin(name)])
            for name, value in tensors.items() if "f32." in name and twin(name) in tensors}


def check(engine: Path, reference: Path) -> list[dict]:
    out = reference.with_suffix(".check.json")
    out.unlink(missing_ok=True)
    command = [engine, "check", "--reference", reference, "--model", reference.parent, "--json", out]
    done = subprocess.run(command, stdout=sys.stderr)
    # The engine leaves with 1 when a limit is passed, too; then there is a table to print.
    if not out.exists():
        sys.exit(f"{engine}: check left with status {done.returncode} and wrote no {out.name}; see its message above")
    return json.loads(out.read_text())["quantities"]


def within(quantity: dict) -> bool:
    return quantity["max_rel"] <= quantity["limit"]  # False for NaN


def table(quantities: list[dict], torch_f32: dict[str, float]) -> str:
    lines = ["| quantity | max abs error | max rel error | limit | PyTorch f32 against f64 | |",
             "|---|---:|---:|---:|---:|---|"]
    for q in quantities:
        own = f"{torch_f32[q['name']]:.1e}" if q["name"] in torch_f32 else ""
        verdict = "ok" if within(q) else "**beyond the limit**"
        lines.append(f"| {q['name']} | {q['max_abs']:.1e} | {q['max_rel']:.1e} | {q['limit']:.0e} | {own} | {verdict} |")
    return "\n".join(lines)


def run(args: argparse.Namespace, directory: Path) -> int:
    settings = Settings(size=args.size, variant=args.variant, seed=args.seed)
    reference = write(settings, directory)
    quantities = check(args.engine, reference)
    if not quantities:
        sys.exit(f"{args.engine}: compared nothing; is {reference} a reference file?")
    print(table(quantities, torch_errors(reference)))
    return int(not all(map(within, quantities)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=Path("target/release/engine"))
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--variant", choices=VARIANTS, default="lora")
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
