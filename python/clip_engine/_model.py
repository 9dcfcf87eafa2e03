"""Models and photos as they are, before any training."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from . import _engine, _images
from ._progress import Watch
from ._settings import Place, source, text_of, texts

if TYPE_CHECKING:
    import numpy.typing as npt


class Model:
    """Both towers of a CLIP; `load` opens one.

    width: numbers of a feature, E. image_size: side of what the vision tower sees, in pixels.
    """

    def __init__(self, native: _engine.Model) -> None:
        self._native = native
        self.width = native.width
        self.image_size = native.image_size

    def embed(self, images: _images.Images, *, batch_size: int = 32, progress: bool = False) -> npt.NDArray[np.float32]:
        """Features of images, [N, E], each of length 1. `images` as in `Run.predict`."""
        with Watch(progress) as watch:
            return _images.embed(self._native, images, batch_size, True, watch)

    def embed_text(self, prompts: Union[str, Iterable[str]], *, progress: bool = False) -> npt.NDArray[np.float32]:
        """Features of one or several prompts, [N, E], each of length 1."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        with Watch(progress) as watch:
            return _images.features(self._native.embed_text(texts, watch), self.width)


def load(model: Place, *, device: str = "auto", precision: Optional[str] = None, progress: bool = True) -> Model:
    """Opens a CLIP: an id of the hub, which is fetched, a folder, or "demo", the one in the package."""
    with Watch(progress) as watch:
        return Model(_engine.Model(text_of(model), None, device, precision, watch))


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos of a split, as a model sees them."""

    images: npt.NDArray[np.uint8]
    """RGB [N, S, S, 3], resized and cropped."""
    labels: npt.NDArray[np.int64]
    """Numbers of the classes, [N]."""
    class_names: list[str]
    paths: list[Optional[str]]
    """None for those of the demo."""


def photos(
    data: Place = "demo", *, model: Optional[Place] = None, split: str = "test", progress: bool = True, **settings: Any
) -> Photos:
    """The photos of "train", "val", "test" or "all". `data`, `model` and settings as in `train`."""
    given = {**texts({**settings, "model": model}), **source(data)}
    with Watch(progress) as watch:
        pixels, side, labels, class_names, paths = _engine.photos(split, given, watch)
    images = np.frombuffer(pixels, np.uint8).reshape(-1, side, side, 3)
    return Photos(images, np.array(labels, np.int64), class_names, [text_of(path) for path in paths])


def zero_shot(
    data: Place = "demo", *, model: Optional[Place] = None, split: str = "test", progress: bool = True, **settings: Any
) -> dict[str, Any]:
    """Scores of plain CLIP, which classifies by its text features: ``images``, ``top1``, ``top5``, ``loss``, and
    ``class_names``. `data`, `model` and settings as in `train`."""
    given = {**texts({**settings, "model": model}), **source(data)}
    with Watch(progress) as watch:
        return json.loads(_engine.zero_shot(split, given, watch))
