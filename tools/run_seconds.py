"""Where the seconds of training runs went, for timings of whole runs.

    engine train --log-level debug --output RUN ... >RUN.said 2>&1
    python tools/run_seconds.py RUN... --json seconds.json

From what a run said: `debug: epoch 3/40: 1020 in 0.081 s` and its like for each task. From summary.json in the run
directory: the time of training and validation with what lies between them, such as saving a state after each epoch,
and the images per second of the steps. RUN.ended, where gpu_report.sh left one, has the seconds of the whole process.
The standard library alone.
"""

import argparse
import json
import re
from pathlib import Path

TASK = re.compile(r"debug: ([^:]+): (\d+) in ([0-9.]+) s$", re.MULTILINE)


def beside(run: Path, ending: str) -> Path:
    return run.with_name(run.name + ending)


def seconds(run: Path) -> dict:
    """Of one run; what cannot be known is left out."""
    summary = json.loads((run / "summary.json").read_text())
    tasks = [(name, int(images), float(taken))
             for name, images, taken in TASK.findall(beside(run, ".said").read_text(errors="replace"))]
    epochs = [at for at, (name, *_) in enumerate(tasks) if name.startswith("epoch ")]
    if not epochs or len(epochs) != summary["epochs"]:
        raise SystemExit(f"{beside(run, '.said')} tells of {len(epochs)} epochs, summary.json of {summary['epochs']}")
    # Every epoch ends with a validation; what comes behind the last one is the kept classifier's.
    end = epochs[-1] + 2

    def of(part: list[tuple], *beginnings: str) -> dict:
        chosen = [(images, taken) for name, images, taken in part if name.startswith(beginnings)]
        images, total = sum(i for i, _ in chosen), sum(t for _, t in chosen)
        return {"images": images, "seconds": total} | ({"images_per_s": images / total} if total > 0 else {})

    found = {"device": summary["device"], "epochs": summary["epochs"],
             "training": of(tasks[:end], "epoch "), "validation": of(tasks[:end], "val"),
             "features_before": of(tasks[:epochs[0]], "features "), "evaluation_after": of(tasks[end:], "val", "test"),
             "training_and_validation_s": summary["seconds"], "images_per_s_of_the_steps": summary["images_per_s"]}
    first = tasks[epochs[0]]
    found["training"]["first_epoch_s"] = first[2]
    if (ended := beside(run, ".ended")).exists():
        found["wall_s"] = int(ended.read_text().split()[1]) / 1e6
    return found


def table(runs: dict[str, dict]) -> str:
    rows = [("device", lambda run: run["device"]), ("epochs", lambda run: str(run["epochs"]))]
    for part in ("training", "validation", "features_before", "evaluation_after"):
        rows.append((f"{part.replace('_', ' ')}, s", lambda run, part=part: f"{run[part]['seconds']:.3f}"))
        rows.append((f"{part.replace('_', ' ')}, images/s",
                     lambda run, part=part: f"{run[part].get('images_per_s', 0):.0f}"))
    rows += [("first epoch, s", lambda run: f"{run['training']['first_epoch_s']:.3f}"),
             ("training and validation with all between, s", lambda run: f"{run['training_and_validation_s']:.3f}"),
             ("whole process, s", lambda run: f"{run['wall_s']:.3f}" if "wall_s" in run else "")]
    lines = ["| | " + " | ".join(runs) + " |", "|---|" + "---:|" * len(runs)]
    return "\n".join(lines + [f"| {name} | " + " | ".join(map(cell, runs.values())) + " |" for name, cell in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runs = {run.name: seconds(run) for run in args.runs}
    if args.json:
        args.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
