"""The settings of a run, as the engine's own table has them."""

from __future__ import annotations

import difflib
import json
import os
from typing import Any, Optional, Union

from . import _engine
from ._html import Table

Place = Union[str, "os.PathLike[str]"]


def settings() -> list[dict[str, str]]:
    """All settings that `train` takes by name: ``name``, ``flag`` of the command, ``kind`` of value, ``help`` and
    ``heading``. A table in notebooks."""
    # The demo has its place in the argument `data`.
    return Table(entry for entry in json.loads(_engine.settings()) if entry["name"] != "demo")


def texts(given: dict[str, Any]) -> dict[str, list[str]]:
    """Settings as their flags take them; None is not given.

    Raises TypeError for a name that is no setting.
    """
    given = {name: value for name, value in given.items() if value is not None}
    names = [entry["name"] for entry in settings()]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else "clip_engine.settings() lists all"
            raise TypeError(f"{name!r} is not a setting; {hint}")
    return {name: _texts(value) for name, value in given.items()}


def source(data: Place) -> dict[str, list[str]]:
    """The setting that says which data: the demo, or a place."""
    return {"demo": ["true"]} if data == "demo" else {"data": [os.fspath(data)]}


def text_of(path: Optional[Place]) -> Optional[str]:
    return None if path is None else os.fspath(path)


def _texts(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each)]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
