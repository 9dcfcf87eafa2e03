"""What the tests share: one short run on the demo's flowers, and photos."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_engine

# A shell's background job begins with SIGINT ignored, and what it starts would keep that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parents[2]
SHORT = {"epochs": 3, "shots": 2, "batch_size": 8}
"""Three steps in each of three epochs."""


def engine(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command that the package installs."""
    program = shutil.which("engine", path=sysconfig.get_path("scripts"))
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8")


def tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The f32 and u8 tensors of a safetensors file, and its metadata."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    kinds = {"F32": np.float32, "U8": np.uint8}
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[start + first : start + last], kinds[entry["dtype"]])
        found[name] = values.reshape(entry["shape"])
    return found, metadata


@pytest.fixture(scope="session")
def records() -> dict[str, list[dict]]:
    """What the callbacks of the run were given."""
    return {"steps": [], "epochs": []}


@pytest.fixture(scope="session")
def run(tmp_path_factory, records) -> clip_engine.Run:
    return clip_engine.train(
        output=tmp_path_factory.mktemp("runs") / "run",
        progress=False,
        on_step=records["steps"].append,
        on_epoch=records["epochs"].append,
        **SHORT,
    )


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """A flower of each class, `pixels` [12, 64, 64, 3], and the features that transformers computes."""
    return tensors(REPOSITORY / "tests/fixtures/demo/reference.safetensors")[0]


@pytest.fixture(scope="session")
def photos(tmp_path_factory, reference) -> Path:
    """The flowers as PNG files, and files of other sizes, formats and modes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(reference["pixels"]):
        Image.fromarray(pixels).save(folder / f"flower-{number:02}.png")
    noise = np.random.default_rng(7).integers(0, 256, (90, 70, 4), np.uint8)
    Image.fromarray(noise).save(folder / "noise-alpha.png")
    Image.fromarray(noise[:, :, 0].copy()).save(folder / "noise-grey.png")
    Image.fromarray(noise[:, :, :3].copy()).quantize(16).save(folder / "noise-palette.png", transparency=3)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise[:, :, :3].copy()).save(folder / "noise-turned.jpg", exif=turned)
    return folder
