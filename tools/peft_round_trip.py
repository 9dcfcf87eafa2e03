"""A run of this engine in peft and transformers, and an adapter of peft in this engine: a table of errors.

    python tools/peft_round_trip.py --engine target/release/engine --size tiny
    python tools/peft_round_trip.py --engine target/release/engine --size full
    python tools/peft_round_trip.py --engine target/release/engine --run RUN --model DIR

With --size it makes what it needs in a temporary folder: a model (assets/demo-clip for tiny, ViT-B/32 with random
weights for full), drawn pictures, and a short run of each kind on them. With --run it takes a run that is there.
For each run:

1. peft loads the exported adapter on CLIPModel: image features, text features and head logits against the
   engine's own, from `engine embed`; prompts are put in by the function in docs/python.md;
2. transformers loads the merged export: the same quantities;
   the lines of Python in the model cards are run;
3. peft writes adapters with random values: `engine embed --init-from` against peft's features.

The engine's text features are those of the head that a run without a trained head keeps (exp(logit scale) times
the class features), so they are compared for such runs. Exit status 1 where an error is beyond 1e-5 (of a value of
size 1: features as they are, logits relative to the largest).
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, logging

from loading_fixtures import vocabulary

ROOT = Path(__file__).resolve().parent.parent
BOUND = 1e-5
CLASSES = ["oxeye daisy", "sword lily", "wild pansy"]

# Runs that are made: arguments beside data, model and output.
RUNS = {
    "lora, q k v out": [],
    "lora, rslora, MLP": ["--targets", "q_proj,fc1,fc2", "--rslora"],
    "clip-lora, both towers": ["--recipe", "clip-lora", "--dropout", "0"],
    "linear": ["--recipe", "linear"],
    "vpt, replace": ["--recipe", "vpt", "--prompt-count", "4"],
    "vpt per layer, accumulate, with LoRA": [
        *["--recipe", "vpt", "--prompt-count", "2", "--prompts", "per-layer"],
        *["--prompt-mode", "accumulate", "--with-lora"],
    ],
}

# What peft is asked for, beside rank and alpha.
ADAPTERS = {
    "list, attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]},
    "regex, vision MLP": {"target_modules": r"vision_model.*\.fc[12]"},
    "rslora, alpha 3": {"target_modules": r"vision_model.*\.(q|v)_proj", "use_rslora": True, "lora_alpha": 3},
    "one block": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
}


class Engine:
    """The command, with its caches in a folder of its own."""

    def __init__(self, path: Path, work: Path):
        self.path, self.work = path.resolve(), work

    def __call__(self, *args: object) -> None:
        command = [str(self.path), *map(str, args)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"XDG_CACHE_HOME": str(self.work / "cache")}
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)}\nleft with status {done.returncode}\n{done.stderr}")

    def features(self, images: Path, *how: object) -> torch.Tensor:
        out = self.work / "features.safetensors"
        self("embed", "--images", images, "--out", out, "--device", "cpu", "--precision", "f32", *how)
        return load_file(out)["features"]


def draw(folder: Path, side: int, seed: int) -> None:
    """An image folder of noise and colours; each class has its own."""
    rng = np.random.default_rng(seed)
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        for label, name in enumerate(CLASSES):
            place = folder / split / name.replace(" ", "_")
            place.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 160, (side, side, 3), dtype=np.uint8)
                pixels[..., label] += 80
                Image.fromarray(pixels).save(place / f"{index}.png")


def full_size_model(to: Path) -> None:
    """ViT-B/32 with random weights and CLIP's own tokenizer."""
    torch.manual_seed(0)
    config = CLIPConfig()
    # The end token of CLIP's vocabulary; the default of CLIPTextConfig is another.
    config.text_config.bos_token_id, config.text_config.eos_token_id = 49_406, 49_407
    CLIPModel(config).save_pretrained(to)
    lines = (ROOT / "tests/fixtures/tokenizer/merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split()) for line in lines if line]
    CLIPTokenizer(vocab=vocabulary(merges), merges=merges).save_pretrained(to)
    CLIPImageProcessorPil().save_pretrained(to)


def pixels_of(images: Path, model: Path) -> torch.Tensor:
    """The photos below a folder in the order of their paths, as the engine reads them: with Pillow's resampling."""
    processor = CLIPImageProcessorPil.from_pretrained(model)
    photos = [Image.open(path).convert("RGB") for path in sorted(images.rglob("*.png"))]
    return processor(images=photos, return_tensors="pt")["pixel_values"]


def unit(features: torch.Tensor) -> torch.Tensor:
    return features / features.norm(dim=-1, keepdim=True)


@torch.no_grad()
def image_features(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return unit(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))


@torch.no_grad()
def class_features(model: torch.nn.Module, folder: Path, names: list[str], templates: list[str]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for name in names:
        texts = [template.replace("{}", name.replace("_", " ")) for template in templates]
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        pooled = model.text_model(input_ids=tokens["input_ids"]).pooler_output
        rows.append(unit(unit(model.text_projection(pooled)).mean(dim=0)))
    return torch.stack(rows)


def head(folder: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    with safe_open(folder / "head.safetensors", "pt") as file:
        names = json.loads(file.metadata()["class_names"])
        return file.get_tensor("head.weight"), file.get_tensor("head.bias"), names


def difference(a: torch.Tensor, b: torch.Tensor, relative: bool = False) -> float:
    assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
    return float((a - b).abs().max() / (b.abs().max() if relative else 1))


def run_card(folder: Path, model: Path, photo: Path) -> torch.Tensor:
    """The logits that the Python of a model card computes."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S).group(1)
    scope = {"folder": folder, "base": model, "photo": photo}
    # What it prints is for its readers.
    with contextlib.redirect_stdout(None):
        exec(compile(code, str(folder / "README.md"), "exec"), scope)
    return scope["logits"]


def function_of_the_docs(name: str):
    """A function that docs/python.md shows."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    scope: dict = {}
    exec(next(block for block in blocks if f"def {name}(" in block), scope)
    return scope[name]


def settings(run: Path) -> dict:
    import tomllib

    return tomllib.loads((run / "config.toml").read_text())


def compare_run(engine: Engine, name: str, run: Path, model: Path, images: Path) -> list[tuple]:
    """Rows: what is compared, where it comes from, the error."""
    work = engine.work / re.sub(r"\W+", "-", name)
    engine("export", "--run", run, "--peft", work / "peft")
    prompts, config = work / "peft/prompts.safetensors", settings(run)
    ours = engine.features(images, "--run", run, "--model", model)
    in_peft = CLIPModel.from_pretrained(model, dtype=torch.float32).eval()
    if config["method"] != "linear":
        moved = difference(image_features(in_peft, pixels_of(images, model)), ours)
        assert moved > 1e-4, f"{name}: training moved the features by {moved} only"
    weight, bias, names = head(run)
    if (work / "peft/adapter").is_dir():
        in_peft = PeftModel.from_pretrained(in_peft, work / "peft/adapter")
    if prompts.exists():
        with torch.no_grad():
            theirs = function_of_the_docs("features_with_prompts")(in_peft.eval(), pixels_of(images, model), prompts)
        return [(name, "peft", "image features", difference(ours, theirs))]
    engine("export", "--run", run, "--merged", work / "merged")
    rows = []
    for loader, loaded, folder in [
        ("peft", in_peft.eval(), model),
        ("merged export", CLIPModel.from_pretrained(work / "merged").eval(), work / "merged"),
    ]:
        theirs = image_features(loaded, pixels_of(images, folder))
        rows.append((name, loader, "image features", difference(ours, theirs)))
        their_weight, their_bias, their_names = head(work / ("peft" if loader == "peft" else "merged"))
        assert their_names == names
        logits = theirs @ their_weight.T + their_bias
        rows.append((name, loader, "head logits", difference(ours @ weight.T + bias, logits, relative=True)))
        if config["classifier"] == "text":
            theirs = class_features(loaded, folder, names, config["templates"])
            rows.append((name, loader, "class features", difference(unit(weight), theirs)))
    # The cards take the default image processor, which is not the engine's to the last bit.
    photo = min(images.rglob("*.png"))
    for folder in [work / "peft", work / "merged"]:
        error = difference(run_card(folder, model, photo), (ours @ weight.T + bias)[:1], relative=True)
        assert error < 1e-2, f"{folder}: the card's logits are off by {error}"
    return rows


def compare_adapter(engine: Engine, name: str, options: dict, model: Path, images: Path, seed: int) -> tuple:
    """An adapter of peft with random values, of a size that changes the features."""
    torch.manual_seed(seed)
    plain = CLIPModel.from_pretrained(model, dtype=torch.float32).eval()
    before = image_features(plain, pixels_of(images, model))
    wrapped = get_peft_model(plain, LoraConfig(**{"r": 4, "lora_alpha": 8, **options})).eval()
    for key, value in wrapped.named_parameters():
        if "lora_" in key:
            value.data = torch.randn_like(value) * (0.05 if "lora_B" in key else 0.1)
    folder = engine.work / f"adapter-{seed}"
    wrapped.save_pretrained(folder / "adapter")
    theirs = image_features(wrapped, pixels_of(images, model))
    assert difference(before, theirs) > 1e-3, f"{name}: the adapter changes nothing"
    ours = engine.features(images, "--model", model, "--init-from", folder)
    return (name, "written by peft", "image features", difference(ours, theirs))


def make_runs(engine: Engine, model: Path, data: Path) -> dict[str, Path]:
    runs = {}
    for name, arguments in RUNS.items():
        runs[name] = engine.work / ("run-" + re.sub(r"\W+", "-", name))
        # A rate at which a few steps move the features.
        rate = [] if {"linear", "vpt"} & set(arguments) else ["--lr-lora", "0.005"]
        short = ["--epochs", "2", "--batch-size", "6", "--early-stop", "off", "--device", "cpu"]
        engine("train", "--data", data, "--model", model, "--output", runs[name], *short, *rate, *arguments)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--size", choices=["tiny", "full"])
    parser.add_argument("--run", type=Path, help="a run that is there")
    parser.add_argument("--model", type=Path, help="its model's folder")
    args = parser.parse_args()
    if (args.size is None) == (args.run is None) or (args.run is None) != (args.model is None):
        parser.error("give --size, or --run and --model")
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        engine = Engine(args.engine, work)
        model = args.model or (work / "model" if args.size == "full" else ROOT / "assets/demo-clip")
        if args.size == "full":
            full_size_model(model)
        draw(work / "data", CLIPConfig.from_pretrained(model).vision_config.image_size + 17, seed=3)
        images = work / "data/test"
        runs = {str(args.run): args.run} if args.run else make_runs(engine, model, work / "data")
        rows = [row for name, run in runs.items() for row in compare_run(engine, name, run, model, images)]
        for seed, (name, options) in enumerate(ADAPTERS.items()):
            rows.append(compare_adapter(engine, name, options, model, images, seed))
    print("| run or adapter | loaded by | quantity | largest error |\n|---|---|---|---:|")
    for name, loader, quantity, error in rows:
        print(f"| {name} | {loader} | {quantity} | {error:.1e} |")
    if not all(error <= BOUND for *_, error in rows):
        sys.exit(f"an error is beyond {BOUND}")


if __name__ == "__main__":
    main()
