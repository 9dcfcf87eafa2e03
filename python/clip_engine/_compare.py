"""Runs beside each other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, Optional

from . import _engine
from ._html import Table, number, percent, table
from ._pictures import Plots
from ._progress import Watch
from ._settings import Place, text_of

COLUMNS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "name": ("technique", str),
    "val_top1": ("val top-1", percent),
    "test_top1": ("{split} top-1", percent),
    "test_top5": ("top-5", percent),
    "macro_f1": ("macro F1", percent),
    "ece": ("ECE", percent),
    "trained_parameters": ("parameters", lambda count: count or None),
    "epochs": ("epochs", lambda count: count or None),
    "best_epoch": ("kept", lambda epoch: epoch or None),
    "seconds": ("s", number(1)),
}


class Comparison:
    """A table of runs, plain CLIP first; notebooks show it.

    rows: a dict for each, with the keys of comparison.json; pandas.DataFrame takes them.
    split: that of ``test_top1`` and the scores behind it. plot: the pictures, where `out` was given.
    """

    def __init__(self, report: dict[str, Any], out: Optional[Place]) -> None:
        self.rows: list[dict[str, Any]] = Table(report["rows"])
        self.split: str = report["split"]
        if out is not None:
            self.plot = Plots(Path(out) / "plots")

    def _repr_html_(self) -> str:
        header = [label.format(split=self.split) for label, _ in COLUMNS.values()]
        return table(header, ([form(row[key]) for key, (_, form) in COLUMNS.items()] for row in self.rows))


def compare(runs: Iterable[Place], *, out: Optional[Place] = None, overwrite: bool = False) -> Comparison:
    """Puts finished runs on the same images beside each other and beside plain CLIP.

    runs: `Run` objects or their paths. out: a folder for comparison.json, report.html and the pictures.
    overwrite: replaces an earlier comparison there.
    """
    with Watch(False) as watch:
        report = _engine.compare([os.fspath(run) for run in runs], text_of(out), overwrite, watch)
    return Comparison(json.loads(report), out)
