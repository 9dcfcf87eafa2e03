"""Runs as ONNX models, in onnxruntime: probabilities and features are the engine's."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import REPOSITORY, tensors
from PIL import Image

import clip_engine

HEAD, LORA, PROMPTS = {"lr_head": 0.1}, {"lr_lora": 0.01}, {"lr_prompt": 0.1}
"""Rates at which a step or two show in the probabilities."""
VPT = {"recipe": "vpt", "prompt_count": 2, **HEAD, **PROMPTS}
RECIPES = {
    "linear": {"recipe": "linear", **HEAD},
    "lora, MLP": {"targets": ["q_proj", "fc1", "fc2"], "rslora": True, **HEAD, **LORA},
    "lora, text tower": {"towers": "text", "classifier": "text", "text_weight": 1, **LORA},
    "mixup": {"recipe": "mixup", **HEAD, **LORA},
    "triplet": {"recipe": "triplet", **HEAD, **LORA},
    "vpt": VPT,
    "vpt, kept": {**VPT, "prompt_mode": "accumulate"},
    "vpt of each block": {**VPT, "prompts": "per-layer", "with_lora": True, **LORA},
    "vpt of each block, kept": {**VPT, "prompts": "per-layer", "prompt_mode": "accumulate"},
    "clip-lora": {"recipe": "clip-lora", **LORA},
    "auto": {"recipe": "auto"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three classes that differ in their brightness; the photos are not square."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(5)
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for number, name in enumerate(("dark", "grey", "größe L")):
            place = folder / split / name
            place.mkdir(parents=True)
            for photo in range(count):
                pixels = random.integers(70 * number, 70 * number + 90, (80, 70, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{photo}.png")
    return folder


@pytest.fixture(scope="module")
def linear(data, tmp_path_factory) -> clip_engine.Run:
    return trained(data, tmp_path_factory.mktemp("runs") / "run", RECIPES["linear"])


def trained(data, output, settings) -> clip_engine.Run:
    settings = {"epochs": 1, "batch_size": 8, "model": REPOSITORY / "assets/demo-clip", **settings}
    return clip_engine.train(data, output=output, progress=False, **settings)


def normalised(pixels, metadata) -> np.ndarray:
    mean, std = (np.float32(json.loads(metadata[name])) for name in ("image_mean", "image_std"))
    return ((np.float32(pixels) / 255 - mean) / std).transpose(0, 3, 1, 2)


def by_class(run, images) -> np.ndarray:
    """The engine's probabilities [N, C]."""
    names = run.class_names
    found = np.zeros((len(images), len(names)))
    for row, prediction in zip(found, run.predict(images, top_k=len(names))):
        row[[names.index(name) for name in prediction.classes]] = prediction.probabilities
    return found


def differences(run, folder, pixels) -> dict[str, float]:
    """The largest differences between the engine and the models of both inputs, in batches of 1 and of 7."""
    probabilities, features = by_class(run, pixels), run.embed(pixels)
    # The classes are told apart, as they were trained.
    assert probabilities.shape == (len(pixels), len(run.class_names)) and probabilities.std(axis=0).max() > 1e-3
    found = dict.fromkeys(("probabilities", "features", "softmax"), 0.0)
    for input in ("pixels", "normalised"):
        run.export(onnx=folder / input, onnx_input=input)
        path = folder / input / "model.onnx"
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        labels = json.loads((folder / input / "labels.json").read_text(encoding="utf-8"))
        assert json.loads(metadata["class_names"]) == labels == run.class_names
        side, values = int(metadata["image_size"]), pixels
        [taken] = session.get_inputs()
        if input == "pixels":
            assert (taken.name, taken.type, taken.shape) == ("pixels", "tensor(uint8)", ["N", side, side, 3])
        else:
            values = normalised(pixels, metadata)
            assert (taken.name, taken.type, taken.shape) == ("pixel_values", "tensor(float)", ["N", 3, side, side])
        names = ["probabilities", "logits", "features"]
        assert [output.name for output in session.get_outputs()] == names
        for first, last in ((0, 1), (1, 8)):
            outputs = session.run(names, {taken.name: values[first:last]})
            assert [output.dtype for output in outputs] == [np.float32] * 3
            tempered = np.float64(outputs[1]) / float(metadata["temperature"])
            softmax = np.exp(tempered) / np.exp(tempered).sum(axis=1, keepdims=True)
            for name, ours, theirs in (
                ("probabilities", probabilities[first:last], outputs[0]),
                ("features", features[first:last], outputs[2]),
                ("softmax", softmax, outputs[0]),
            ):
                assert ours.shape == theirs.shape
                found[name] = max(found[name], float(np.abs(ours - theirs).max()))
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe(recipe, data, tmp_path, reference):
    run = trained(data, tmp_path / "run", RECIPES[recipe])
    found = differences(run, tmp_path, reference["pixels"][:8])
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("name", ["gelu", "odd"])
def test_models_of_other_kinds(name, linear, tmp_path):
    model, random = REPOSITORY / "tests/fixtures/reference" / name, np.random.default_rng(6)
    sizes = json.loads((model / "config.json").read_text())
    run = tmp_path / "run"
    shutil.copytree(linear.path, run)
    config = (run / "config.toml").read_text(encoding="utf-8")
    config = re.sub("^model = .*", f"model = {json.dumps(str(model))}", config, flags=re.M)
    (run / "config.toml").write_text(config, encoding="utf-8")
    head = {"head.weight": random.normal(0, 9, (3, sizes["projection_dim"])), "head.bias": random.normal(0, 1, 3)}
    write_tensors(run / "head.safetensors", head, {"class_names": json.dumps(linear.class_names)})
    side = sizes["vision_config"]["image_size"]
    pixels = random.integers(0, 256, (8, side, side, 3), np.uint8)
    found = differences(clip_engine.Run(run), tmp_path, pixels)
    assert max(found.values()) < 1e-5, found


def write_tensors(path, named, metadata) -> None:
    header, data = {"__metadata__": metadata}, b""
    for name, values in named.items():
        values = np.float32(values)
        entry = {"dtype": "F32", "shape": values.shape, "data_offsets": [len(data), len(data) + values.nbytes]}
        header[name], data = entry, data + values.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert tensors(path)[0].keys() == named.keys()


@pytest.mark.parametrize(
    "orientation, size", [("exif", {"shortest_edge": 64}), ("ignore", {"height": 70, "width": 70})]
)
def test_the_card_predicts_photos(orientation, size, data, photos, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(REPOSITORY / "assets/demo-clip", model)
    processor = {"size": size, "crop_size": 64, "do_center_crop": True}
    (model / "preprocessor_config.json").write_text(json.dumps(processor))
    settings = {**RECIPES["linear"], "model": model, "orientation": orientation}
    run = trained(data, tmp_path / "run", settings)
    named = [photos / "noise-turned.jpg", photos / "noise-alpha.png"]
    predicted = run.predict(named)
    for input in ("pixels", "normalised"):
        folder = tmp_path / input
        run.export(onnx=folder, onnx_input=input)
        card = (folder / "README.md").read_text(encoding="utf-8")
        code = re.search("```python\n(.*?)```", card, flags=re.S)[1]
        for photo, expected in zip(named, predicted):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(code, {"folder": str(folder), "photo": str(photo)})
            label, probability = said.getvalue().rsplit(maxsplit=1)
            assert label == expected.label
            assert float(probability) == pytest.approx(expected.probability, abs=1e-5)
