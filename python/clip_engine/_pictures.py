"""The pictures that a run leaves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable

from ._settings import Place


class Picture:
    """A picture that notebooks show."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.svg = path.read_text(encoding="utf-8")

    def _repr_svg_(self) -> str:
        # No wider than the notebook.
        return self.svg.replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)

    def save(self, path: Place) -> None:
        """Writes it to a file whose name ends in .svg or .png."""
        suffix = Path(path).suffix.lower()
        if suffix not in (".svg", ".png"):
            raise ValueError(f"{path}: a picture is saved as .svg or .png")
        shutil.copyfile(self._path.with_suffix(suffix), path)


class Plots:
    """The pictures in a folder, a method for each: ``plot.curves()``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __dir__(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.svg"))

    def __getattr__(self, name: str) -> Callable[[], Picture]:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in dir(self):
            raise AttributeError(f"{self._folder} has no picture {name!r}, only: {', '.join(dir(self)) or 'none'}")
        return lambda: Picture(self._folder / f"{name}.svg")
