"""Images as users hold them, as the native module takes them; and those of a split."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from . import _engine

if TYPE_CHECKING:
    import numpy.typing as npt
    import PIL.Image

    Image = Union[str, os.PathLike[str], npt.NDArray[np.uint8], PIL.Image.Image]
    Images = Union[Image, Iterable[Image]]


def groups(images: Images, upright: bool, watch: Any) -> Iterator[tuple[bool, list[Any]]]:
    """Neighbours of one kind: (True, files), and (False, (height, width, RGB bytes) of each).

    `upright` turns Pillow's images as their EXIF data say.
    """
    is_one = images.ndim != 4 if isinstance(images, np.ndarray) else _is_path(images) or _is_pillow(images)
    each: Any = [images] if is_one else images
    for are_paths, group in itertools.groupby(each, _is_path):
        if are_paths:
            yield True, _engine.list_photos([os.fspath(path) for path in group], watch)
        else:
            yield False, [_pixels(image, upright) for image in group]


def embed(native: Any, images: Images, batch_size: int, upright: bool, watch: Any) -> npt.NDArray[np.float32]:
    """Features [N, E] by a native `Model`."""
    parts = []
    for are_files, group in groups(images, upright, watch):
        if are_files:
            parts.append(native.embed_files(group, batch_size, False, watch)[0])
        else:
            parts.append(native.embed_arrays(group, batch_size, watch))
    return features(b"".join(parts), native.width)


def features(values: bytes, width: int) -> npt.NDArray[np.float32]:
    """[N, E] of its bytes, to be written to as any array."""
    return np.frombuffer(bytearray(values), np.float32).reshape(-1, width)


def _is_path(image: object) -> bool:
    return isinstance(image, (str, os.PathLike))


def _is_pillow(image: object) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _pixels(image: Any, upright: bool) -> tuple[int, int, bytes]:
    if _is_pillow(image):
        image = _of_pillow(image, upright)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a path, a Pillow image or a numpy array, not {type(image).__name__}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"an array is uint8 [H, W, 3] or [H, W], not {image.dtype} {list(image.shape)}")
    return image.shape[0], image.shape[1], image.tobytes()


def _of_pillow(image: PIL.Image.Image, upright: bool) -> npt.NDArray[np.uint8]:
    """As the engine reads the file: upright, transparency on white."""
    import PIL.Image
    import PIL.ImageOps

    if image.mode[0] in "IF":
        raise TypeError(f"a Pillow image of mode {image.mode} has more than 8 bits; convert it, or give its path")
    if upright:
        image = PIL.ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
