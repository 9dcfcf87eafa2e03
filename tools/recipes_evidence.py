#!/usr/bin/env python3
"""How good the recipes' defaults are: recipes over several data seeds beside scikit-learn's logistic regression on
the same features, and their probabilities before and after the temperature. Prints tables in Markdown.

    pip install numpy scikit-learn safetensors
    python3 tools/recipes_evidence.py --photos DIR --model assets/demo-clip --seeds 10
    python3 tools/recipes_evidence.py --demo --seeds 5
    python3 tools/recipes_evidence.py --demo --shots 1 4 all --results FILE --against lora

DIR has a folder of photos for each class; of each class 20 photos, or --train, are trained on, 10, or --val, validated
on, and the rest tested on, drawn by the seed. Differences are paired: by seed, mean and standard error. Further flags
of engine train follow after --; a recipe may have its own, as in --recipes linear "lora --rank 4".

--shots trains on so many photos of each class, in the order given, and has tables of its own, a column for each number.
--results keeps finished runs, a line of JSON for each, and trains none again whose line is there; the line to be taken
out for that. What a line is looked up by: data, --shots, seed, recipe and further flags, but not the engine. --tables
prints what is there and trains nothing.
"""
import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RECIPES = ["linear", "lora", "mixup", "triplet", "vpt"]
BASELINE = "logistic regression"


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
    parser.add_argument("--recipes", nargs="+", help=f"by default {' '.join(RECIPES)}; with --tables those in the file")
    parser.add_argument("--shots", nargs="+", type=number_or_all, metavar="K", help='photos a class, or "all"')
    parser.add_argument("--against", metavar="RECIPE", help="this recipe less each of the others, by --shots")
    parser.add_argument("--measure", choices=["top1", "nll", "ece"], default="top1", help="in the tables by --shots")
    parser.add_argument("--results", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--tables", action="store_true", help="train nothing: the tables by --shots of --results")
    args = parser.parse_args(own)
    if args.demo == bool(args.photos):
        parser.error("give --demo or --photos")
    if args.tables and not args.results:
        parser.error("--tables needs --results")
    runs = Runs(args, further)
    if args.tables:
        args.recipes = args.recipes or list(dict.fromkeys(recipe for _, _, recipe in runs.records))
        args.shots = args.shots or list({shots for shots, _, _ in runs.records})
    args.recipes = args.recipes or RECIPES
    if args.against and not (args.shots and args.against in args.recipes):
        parser.error("--against names one of --recipes and goes with --shots or --tables")
    with tempfile.TemporaryDirectory() as folder:
        if not args.tables:
            train(args, Path(folder), runs)
        if args.shots:
            tables_by_shots(args, runs)
        else:
            tables(args, runs, scikit_learn(args, Path(folder)) if args.photos else {})
    ladders(args, runs)


def number_or_all(text):
    return text if text == "all" else int(text)


class Runs:
    """The finished runs of these data and further flags, by photos a class, seed and recipe."""

    def __init__(self, args, further):
        self.file, self.records, self.further = args.results, {}, further
        # What does not tell one photo from another is left out: where photos and model lie.
        of_photos = args.photos and f"{args.photos.name}, {args.train} + {args.val}, {Path(args.model).name}"
        self.data = of_photos or "demo"
        if self.file and self.file.exists():
            for line in self.file.read_text().splitlines():
                record = json.loads(line)
                if (record["set"], record["further"]) == (self.data, further):
                    self.records[record["shots"], record["seed"], record["recipe"]] = record

    def get(self, shots, seed, recipe):
        return self.records.get((shots, seed, recipe))

    def add(self, shots, seed, recipe, record):
        record = {"set": self.data, "shots": shots, "seed": seed, "recipe": recipe, "further": self.further, **record}
        self.records[shots, seed, recipe] = record
        if self.file:
            with self.file.open("a") as file:
                file.write(json.dumps(record) + "\n")
            seconds, top1 = record["wall_seconds"], record["test"]["top1"]
            print(f"{self.data}, {shots} a class, {seed}, {recipe}: {top1:.1%}, {seconds:.0f} s", file=sys.stderr)

    def baseline(self, shots, seed):
        """The logistic regression beside the runs: that of the first that has one, as it is the same for all."""
        for at, record in self.records.items():
            if at[:2] == (shots, seed) and record["baseline"]:
                return record["baseline"]

    def scores(self, measure, shots, name, seeds):
        """By seed, of the runs there are."""
        scores = {}
        for seed in seeds:
            record = self.get(shots, seed, name)
            test = self.baseline(shots, seed) if name == BASELINE else record and record["test"]
            if test:
                scores[seed] = test[measure]
        return scores


def seeds_of(args):
    return [(42 if args.demo else 0) + seed for seed in range(args.seeds)]


def train(args, folder, runs):
    for place, seed in enumerate(seeds_of(args)):
        data = data_flags(args, folder, place)
        for shots in args.shots or ["all"]:
            for recipe in args.recipes:
                # A single image of each class leaves no pair for the triplet loss.
                if runs.get(shots, seed, recipe) or (shots == 1 and recipe.startswith("triplet")):
                    continue
                run = folder / "run"
                name, *flags = recipe.split()
                command = [args.engine, "train", "--recipe", name, *flags, "--output", run, "--log-level", "error"]
                if shots != "all":
                    command += ["--shots", str(shots)]
                if "--baseline" not in runs.further and runs.baseline(shots, seed):
                    command += ["--baseline", "false"]
                start = time.monotonic()
                subprocess.run([*command, *data, *runs.further], check=True, stdout=subprocess.DEVNULL)
                runs.add(shots, seed, recipe, {**results(run), "wall_seconds": round(time.monotonic() - start, 2)})
                shutil.rmtree(run)


def results(folder):
    """What is kept of a run."""
    summary = json.loads((folder / "summary.json").read_text())
    images = json.loads((folder / "evaluation.json").read_text())["images"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["val"]["loss"] for record in records if record["type"] == "epoch"]
    record = {key: summary.get(key) for key in ("baseline", "temperature", "ladder", "seconds")}
    record |= {key: summary.get(key) for key in ("epochs", "best_epoch", "stopped_early")}
    return {
        "test": {key: summary["test"][key] for key in ("images", "top1", "nll", "ece")},
        **record,
        "stopped_while_falling": bool(losses and summary["stopped_early"] and losses[-1] <= min(losses)),
        "confidence": [round(image["confidence"], 6) for image in images],
        "right": [int(image["predicted"] == image["label"]) for image in images],
    }


def tables(args, runs, reference):
    seeds = seeds_of(args)
    of_recipe = {recipe: [runs.get("all", seed, recipe) for seed in seeds] for recipe in args.recipes}
    own = np.array([runs.baseline("all", seed)["top1"] for seed in seeds])
    linear = [run["test"]["top1"] for run in of_recipe[args.recipes[0]]]
    print("| | test top-1 | less the engine's logistic regression | less " + args.recipes[0] + " | epoch kept, run |")
    print("|---|---:|---:|---:|---:|")
    for name, values in reference.items():
        print(f"| scikit-learn, {name} | {mean(values)} | {mean(values - own)} | {mean(values - linear)} | |")
    print(f"| {BASELINE} | {mean(own)} | | {mean(own - linear)} | |")
    for recipe, of_seeds in of_recipe.items():
        top1 = np.array([run["test"]["top1"] for run in of_seeds])
        kept, ran = (np.mean([run[key] for run in of_seeds]) for key in ("best_epoch", "epochs"))
        print(f"| {recipe} | {mean(top1)} | {mean(top1 - own)} | {mean(top1 - linear)} | {kept:.0f}, {ran:.0f} |")
    print()
    print("| | T | NLL before, after | Brier before, after | ECE before, after | all seeds as one, and 95 % if calibrated |")
    print("|---|---:|---:|---:|---:|---:|")
    for recipe, of_seeds in of_recipe.items():
        temperatures = [run["temperature"] for run in of_seeds]
        cells = [f"{np.median([t['value'] for t in temperatures]):.2f}"]
        for key, form in (("nll", "{:.3f}"), ("brier", "{:.3f}"), ("ece", "{:.1%}")):
            pair = [np.mean([t[when][key] for t in temperatures]) for when in ("before", "after")]
            cells.append(", ".join(form.format(value) for value in pair))
        confidence = np.concatenate([run["confidence"] for run in of_seeds])
        right = np.concatenate([run["right"] for run in of_seeds])
        low, high = band(confidence)
        cells.append(f"{ece(confidence, right):.1%}, {low:.1%} to {high:.1%}")
        print(f"| {recipe} | " + " | ".join(cells) + " |")
    print()
    for recipe, of_seeds in of_recipe.items():
        falling = sum(run["stopped_while_falling"] for run in of_seeds)
        ended = sum(not run["stopped_early"] for run in of_seeds)
        print(f"{recipe}: {ended} of {len(of_seeds)} runs ended with the epochs, {falling} stopped while the loss fell")


def tables_by_shots(args, runs):
    """A row for each recipe, a column for each number of photos a class. Cells with fewer seeds name how many."""
    columns, seeds = in_order(args.shots), seeds_of(args)
    rows = {}
    for name in [BASELINE, *args.recipes]:
        rows[name] = [runs.scores(args.measure, shots, name, seeds) for shots in columns]
    title = {"top1": "test top-1", "nll": "test NLL", "ece": "test ECE"}[args.measure]
    print(f"| {title}, photos a class: | " + " | ".join(map(str, columns)) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(cell(scores.values(), args) for scores in row) + " |")
    if not args.against:
        return
    print()
    print(f"| {args.against} less, photos a class: | " + " | ".join(map(str, columns)) + " | mean of the columns |")
    print("|---|" + "---:|" * (len(columns) + 1))
    for name, row in rows.items():
        if name == args.against:
            continue
        pairs = []
        for ours, theirs in zip(rows[args.against], row):
            pairs.append({seed: score - theirs[seed] for seed, score in ours.items() if seed in theirs})
        # By seed first, over the columns that have pairs: those of one seed share their photos.
        there = [pair for pair in pairs if pair]
        means = [np.mean([pair[seed] for pair in there]) for seed in seeds if all(seed in pair for pair in there)]
        cells = [cell(pair.values(), args) for pair in pairs]
        print(f"| {name} | " + " | ".join([*cells, cell(means if there else [], args)]) + " |")


def in_order(shots):
    return sorted(set(shots), key=lambda number: float("inf") if number == "all" else number)


def ladders(args, runs):
    """A row for each rung of the ladders that the recipes climbed."""
    for recipe in args.recipes:
        of_shots = {}
        for shots in in_order(args.shots or ["all"]):
            of_seeds = [runs.get(shots, seed, recipe) for seed in seeds_of(args)]
            of_shots[shots] = [run["ladder"] for run in of_seeds if run and run["ladder"]]
        if not any(of_shots.values()):
            continue
        print()
        print(f"| photos a class | rung of {recipe} | runs | test top-1 | test NLL | kept | seconds |")
        print("|---:|---|---:|---:|---:|---:|---:|")
        for shots, climbed in of_shots.items():
            rungs = [(rung, at == ladder["kept"]) for ladder in climbed for at, rung in enumerate(ladder["rungs"])]
            for kind in dict.fromkeys(rung["kind"] for rung, _ in rungs):
                of_kind = [(rung, kept) for rung, kept in rungs if rung["kind"] == kind]
                tests = [rung["test"] for rung, _ in of_kind if rung["test"]]
                top1, nll = ([test[key] for test in tests] for key in ("top1", "nll"))
                seconds = np.mean([rung["seconds"] for rung, _ in of_kind])
                cells = [mean(top1), mean(nll, 1, 3), sum(kept for _, kept in of_kind), f"{seconds:.1f}"]
                print(f"| {shots} | {kind} | {len(of_kind)} | " + " | ".join(map(str, cells)) + " |")


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


def mean(values, times=100, digits=1):
    values = np.array(list(values))
    if len(values) < 2:
        return "".join(f"{times * value:.{digits}f}" for value in values)
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{times * np.mean(values):.{digits}f} ± {times * error:.{digits}f}"


def cell(values, args):
    number = f" ({len(values)})" if 0 < len(values) < args.seeds else ""
    return (mean(values, 1, 3) if args.measure == "nll" else mean(values)) + number


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
