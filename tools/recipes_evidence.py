#!/usr/bin/env python3
"""How good the recipes' defaults are: recipes over several data seeds beside scikit-learn's logistic regression on
the same features, and their probabilities before and after the temperature. Prints tables in Markdown.

    pip install numpy scikit-learn safetensors
    python3 tools/recipes_evidence.py --photos DIR --model assets/demo-clip --seeds 10
    python3 tools/recipes_evidence.py --demo --seeds 5

DIR has a folder of photos for each class; of each class 20 photos, or --train, are trained on, 10, or --val, validated
on, and the rest tested on, drawn by the seed. Differences are paired: by seed, mean and standard error. Further flags
of engine train follow after --.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RECIPES = ["linear", "lora", "mixup", "triplet", "vpt"]


def main():
    own, further = sys.argv[1:], []
    if "--" in own:
        own, further = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="target/release/engine")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--model", default="assets/demo-clip")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--train", type=int, default=20)
    parser.add_argument("--val", type=int, default=10)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    args = parser.parse_args(own)
    with tempfile.TemporaryDirectory() as folder:
        evidence(args, Path(folder), further)


def evidence(args, folder, further):
    data = [data_flags(args, folder, seed) for seed in range(args.seeds)]
    results = {}
    for recipe in args.recipes:
        runs = []
        for seed, flags in enumerate(data):
            run = folder / f"{recipe}-{seed}"
            command = [args.engine, "train", "--recipe", recipe, "--output", run, "--log-level", "error"]
            subprocess.run([*command, *flags, *further], check=True, stdout=subprocess.DEVNULL)
            runs.append(Run(run))
        results[recipe] = runs
    reference = None
    if args.photos:
        reference = scikit_learn(args, folder)
    own = np.array([run.summary["baseline"]["top1"] for run in results[args.recipes[0]]])
    linear = [run.top1 for run in results[args.recipes[0]]]
    print("| | test top-1 | less the engine's logistic regression | less " + args.recipes[0] + " | epoch kept, run |")
    print("|---|---:|---:|---:|---:|")
    for name, values in (reference or {}).items():
        print(f"| scikit-learn, {name} | {mean(values)} | {mean(values - own)} | {mean(values - linear)} | |")
    print(f"| logistic regression | {mean(own)} | | {mean(own - linear)} | |")
    for recipe, runs in results.items():
        top1 = np.array([run.top1 for run in runs])
        kept, ran = (np.mean([run.summary[key] for run in runs]) for key in ("best_epoch", "epochs"))
        print(f"| {recipe} | {mean(top1)} | {mean(top1 - own)} | {mean(top1 - linear)} | {kept:.0f}, {ran:.0f} |")
    print()
    print("| | T | NLL before, after | Brier before, after | ECE before, after | all seeds as one, and 95 % if calibrated |")
    print("|---|---:|---:|---:|---:|---:|")
    for recipe, runs in results.items():
        temperatures = [run.summary["temperature"] for run in runs]
        cells = [f"{np.median([t['value'] for t in temperatures]):.2f}"]
        for key, form in (("nll", "{:.3f}"), ("brier", "{:.3f}"), ("ece", "{:.1%}")):
            pair = [np.mean([t[when][key] for t in temperatures]) for when in ("before", "after")]
            cells.append(", ".join(form.format(value) for value in pair))
        confidence = np.concatenate([run.confidence for run in runs])
        right = np.concatenate([run.right for run in runs])
        low, high = band(confidence)
        cells.append(f"{ece(confidence, right):.1%}, {low:.1%} to {high:.1%}")
        print(f"| {recipe} | " + " | ".join(cells) + " |")
    print()
    for recipe, runs in results.items():
        falling = sum(run.stopped_while_falling for run in runs)
        ended = sum(not run.summary["stopped_early"] for run in runs)
        print(f"{recipe}: {ended} of {len(runs)} runs ended with the epochs, {falling} stopped while the loss fell")


class Run:
    def __init__(self, folder):
        self.summary = json.loads((folder / "summary.json").read_text())
        self.top1 = self.summary["test"]["top1"]
        images = json.loads((folder / "evaluation.json").read_text())["images"]
        self.confidence = np.array([image["confidence"] for image in images])
        self.right = np.array([image["predicted"] == image["label"] for image in images])
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [record["val"]["loss"] for record in records if record["type"] == "epoch"]
        self.stopped_while_falling = self.summary["stopped_early"] and losses[-1] <= min(losses)


def data_flags(args, folder, seed):
    """The data of a seed: of the demo, or links to photos in train/, val/ and test/."""
    if args.demo:
        return ["--demo", "--seed", str(42 + seed)]
    root, draw = folder / f"data-{seed}", random.Random(seed)
    for of_class in sorted(path for path in args.photos.iterdir() if path.is_dir()):
        photos = sorted(of_class.iterdir())
        draw.shuffle(photos)
        first, last = args.train, args.train + args.val
        for split, part in (("train", photos[:first]), ("val", photos[first:last]), ("test", photos[last:])):
            (root / split / of_class.name).mkdir(parents=True)
            for photo in part:
                (root / split / of_class.name / photo.name).symlink_to(photo.resolve())
    return ["--data", root, "--model", args.model, "--seed", str(seed)]


def scikit_learn(args, folder):
    """Test top-1 by seed, with the C of the lowest NLL on the validation photos, and with the best C in hindsight."""
    from safetensors import safe_open
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    cs, by_c, chosen = 10.0 ** np.arange(-1, 4.5, 0.5), [], []
    for seed in range(args.seeds):
        parts = {}
        for split in ("train", "val", "test"):
            file = folder / f"{split}-{seed}.safetensors"
            images = folder / f"data-{seed}" / split
            command = [args.engine, "embed", "--model", args.model, "--images", images, "--out", file]
            subprocess.run(command, check=True, capture_output=True)
            with safe_open(file, "np") as tensors:
                paths = json.loads(tensors.metadata()["paths"])
                parts[split] = tensors.get_tensor("features").astype(float), [path.split("/")[0] for path in paths]
        right, losses = [], []
        for c in cs:
            model = LogisticRegression(C=c, max_iter=10_000).fit(*parts["train"])
            losses.append(log_loss(parts["val"][1], model.predict_proba(parts["val"][0])))
            right.append(model.score(*parts["test"]))
        by_c.append(right)
        chosen.append(right[int(np.argmin(losses))])
    by_c = np.array(by_c)
    best = int(by_c.mean(0).argmax())
    return {"C by validation": np.array(chosen), f"best C in hindsight, {cs[best]:.3g}": by_c[:, best]}


def mean(values):
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{100 * np.mean(values):.1f} ± {100 * error:.1f}"


def ece(confidence, right):
    """Expected calibration error over fifteen bins."""
    bins = np.clip(np.ceil(confidence * 15).astype(int), 1, 15)
    gaps = np.bincount(bins, weights=confidence - right, minlength=16)
    return np.abs(gaps).sum() / len(confidence)


def band(confidence, draws=2000):
    """Where the error of a calibrated classifier with these confidences lies in 95 of 100 cases."""
    draw = np.random.default_rng(0)
    errors = [ece(confidence, draw.random(len(confidence)) < confidence) for _ in range(draws)]
    return np.quantile(errors, [0.025, 0.975])


if __name__ == "__main__":
    main()
