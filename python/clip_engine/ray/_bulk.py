"""Predictions and features of long lists of photos, by the workers of a Ray cluster, into Parquet files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from .. import _engine
from .._progress import Watch
from .._settings import Place, text_of
from ._cluster import UNFINISHED, Share, open_folder, replace, share

ABOUT = b"clip_engine"
"""Key of what a part says of itself in its file."""
OTHERS = {
    "paths": "made of other photos than the list has at its place; give the same list, in the same order",
    "made_of": "made by another run or model; name that",
}
"""What is wrong with a part that says something else of itself."""
MANIFEST = "_manifest.json"
"""Readers of a folder of Parquet files pass over names that begin with an underscore or a dot."""


@dataclass(frozen=True)
class Parts:
    """A folder of Parquet files, each of so many photos of the list; all of them together are one table.

    pyarrow, pandas, DuckDB, Spark and ray.data.read_parquet read the folder as it is.
    """

    path: Path
    photos: int
    """In the list."""
    parts: int
    kept: int
    """Parts that were there already."""
    bad: int
    """Photos that could not be read; `error` says why."""


def predict(
    run: Place,
    images: Union[Place, Iterable[Place]],
    out: Place,
    *,
    top_k: int = 5,
    part_size: int = 1000,
    batch_size: int = 32,
    workers: Optional[int] = None,
    cpus: Optional[float] = None,
    gpus: Optional[float] = None,
    model: Optional[Place] = None,
    precision: Optional[str] = None,
    resume: bool = False,
    progress: bool = True,
) -> Parts:
    """Classifies photos: a folder of Parquet files with the columns ``path``, ``label``, ``probability``, ``classes``
    and ``probabilities`` (lists of the `top_k` most probable), ``error``.

    run: a run directory. images: a folder, which is searched with its subfolders, or files and folders.
    part_size: photos a file, which is what a worker does at a time; which photo is in which does not depend on the
        workers.
    workers: as many as the cluster has room for, unless named. cpus, gpus: of each; a GPU where there are some.
    model: where the model is now, if it was moved.
    resume: keeps the parts that are there and makes those that are missing.

    All paths, and a model that is a folder, must be the same on all nodes: a disk that they share. A worker that dies
    is started again, and its part with it. Raises EngineError for parts of another list or run.
    """
    given = {"command": "predict", "top_k": top_k, "part_size": part_size}
    opened = {"directory": os.fspath(run), "model": text_of(model), "precision": precision}
    return _make(_Task(given, opened, batch_size), images, out, share(cpus, gpus), workers, resume, progress)


def embed(
    images: Union[Place, Iterable[Place]],
    out: Place,
    *,
    run: Optional[Place] = None,
    model: Optional[Place] = None,
    part_size: int = 1000,
    batch_size: int = 32,
    workers: Optional[int] = None,
    cpus: Optional[float] = None,
    gpus: Optional[float] = None,
    precision: Optional[str] = None,
    resume: bool = False,
    progress: bool = True,
) -> Parts:
    """Features of photos, of length 1: a folder of Parquet files with the columns ``path``, ``features`` (a list of E
    f32 numbers), ``error``.

    run: what it trained is used. model: without a run, an id of the hub, a folder or "demo". Other arguments as in
    `predict`.
    """
    if run is None and model is None:
        raise TypeError("embed takes a run, or a model, or both if the run's model was moved")
    given = {"command": "embed", "part_size": part_size}
    opened = {"directory": text_of(run), "model": text_of(model), "precision": precision}
    return _make(_Task(given, opened, batch_size), images, out, share(cpus, gpus), workers, resume, progress)


@dataclass(frozen=True)
class _Task:
    given: dict[str, Any]
    """What the results follow from, beside the list and the run or the model."""
    opened: dict[str, Optional[str]]
    batch_size: int


@dataclass(frozen=True)
class _Made:
    """What a worker says of a part."""

    part: int
    photos: int = 0
    bad: int = 0
    kept: bool = False
    made_of: str = ""
    """A hash of the run or the model."""
    problem: str = ""
    """Why it was not made; empty if it was."""


def _make(
    task: _Task,
    images: Union[Place, Iterable[Place]],
    out: Place,
    share: Share,
    workers: Optional[int],
    resume: bool,
    progress: bool,
) -> Parts:
    size = task.given["part_size"]
    if size < 1:
        raise ValueError(f"part_size is {size}; it is at least 1")
    named = [images] if isinstance(images, (str, os.PathLike)) else images
    with Watch(progress) as watch:
        files = [os.fsencode(file) for file in _engine.list_photos([os.fspath(name) for name in named], watch)]
        if not files:
            raise _engine.EngineError("there are no photos in the list")
        folder = Path(os.path.abspath(out))
        open_folder(folder, "folder of parts", MANIFEST, task.given, resume)
        rows = [
            {"part": number, "files": b"\0".join(files[first : first + size])}
            for number, first in enumerate(range(0, len(files), size))
        ]
        for path in sorted(folder.glob("part-*")):
            if path.name >= _name(len(rows)):
                problem = "the list ends before it; remove the parts of a longer one, or name another folder"
                raise _engine.EngineError(f"{path}: {problem}")
        count = min(workers or share.workers, len(rows))
        made = _run(task, rows, folder, share, count)
        watch.begin(task.given["command"], len(files), False)
        found: list[_Made] = []
        with contextlib.closing(made):
            for part in made:
                if part.problem:
                    raise _engine.EngineError(part.problem)
                if found and part.made_of != found[0].made_of:
                    both = f"{_name(found[0].part)} and {_name(part.part)}"
                    problem = "are of different models or runs; name another folder, or remove what is old"
                    raise _engine.EngineError(f"{folder}: {both} {problem}")
                found.append(part)
                watch.advance(part.photos)
    # Of workers that died.
    for left in folder.glob(f"{UNFINISHED}*"):
        left.unlink()
    return Parts(Path(out), len(files), len(rows), sum(part.kept for part in found), sum(part.bad for part in found))


def _run(
    task: _Task, rows: list[dict[str, Any]], folder: Path, share: Share, workers: int
) -> Iterator[_Made]:
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False
    made = dataset.map(
        _Worker,
        fn_constructor_kwargs={"task": task, "folder": folder, "share": share},
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )
    with _level("ray.data", logging.WARNING), _level("ray.data._internal.progress", logging.ERROR):
        for row in made.iter_rows():
            yield _Made(**row)


@contextlib.contextmanager
def _level(name: str, level: int) -> Iterator[None]:
    """What a part of Ray Data says meanwhile: there is a bar of our own."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Worker:
    """An actor: opens the run or the model for its first part, and keeps it."""

    def __init__(self, task: _Task, folder: Path, share: Share) -> None:
        self._task, self._folder = task, folder
        self._device = share.apply()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = int(row["part"])
        try:
            return asdict(self._part(part, row["files"]))
        except _engine.EngineError as error:
            return asdict(_Made(part, problem=str(error)))

    def _part(self, part: int, joined: bytes) -> _Made:
        path = self._folder / _name(part)
        about = {"paths": hashlib.sha256(joined).hexdigest(), "made_of": self._made_of}
        if path.exists():
            there = pq.read_metadata(path)
            known = json.loads(there.metadata[ABOUT])
            for key, problem in OTHERS.items():
                if known[key] != about[key]:
                    raise _engine.EngineError(f"{path}: {problem}, or name another folder")
            return _Made(part, there.num_rows, known["bad"], True, known["made_of"])
        files = [os.fsdecode(name) for name in joined.split(b"\0")]
        columns = self._predicted(files) if self._task.given["command"] == "predict" else self._embedded(files)
        # Parquet has no strings that are not UTF-8.
        shown = [os.fsencode(name).decode("utf-8", "replace") for name in files]
        table = pa.table({"path": pa.array(shown, pa.string()), **columns})
        bad = len(table) - columns["error"].null_count
        about["bad"] = bad
        replace(path, lambda to: pq.write_table(table.replace_schema_metadata({ABOUT: json.dumps(about)}), to))
        return _Made(part, len(table), bad, False, self._made_of)

    @functools.cached_property
    def _native(self) -> Any:
        directory, model, precision = (self._task.opened[key] for key in ("directory", "model", "precision"))
        # Without a watch: what is wrong with a photo is in its row.
        if self._task.given["command"] == "predict":
            return _engine.Predictor(directory, model, self._device, precision, None)
        return _engine.Model(model, directory, self._device, precision, None)

    @functools.cached_property
    def _made_of(self) -> str:
        """A run by its head, which no two trainings share, a model by its weights."""
        directory = self._task.opened["directory"]
        if directory is None:
            return self._native.weights
        return hashlib.sha256((Path(directory) / "head.safetensors").read_bytes()).hexdigest()

    def _predicted(self, files: list[str]) -> dict[str, pa.Array]:
        found = self._native.files(files, self._task.given["top_k"], self._task.batch_size, None)
        names = self._native.class_names
        classes, probabilities, errors = [], [], []
        for _, choices, problem in found:
            errors.append(problem)
            classes.append(None if problem else [names[number] for number, _ in choices])
            probabilities.append(None if problem else [probability for _, probability in choices])
        return {
            "label": pa.array([each and each[0] for each in classes], pa.string()),
            "probability": pa.array([each and each[0] for each in probabilities], pa.float64()),
            "classes": pa.array(classes, pa.list_(pa.string())),
            "probabilities": pa.array(probabilities, pa.list_(pa.float64())),
            "error": pa.array(errors, pa.string()),
        }

    def _embedded(self, files: list[str]) -> dict[str, pa.Array]:
        values, errors = self._native.embed_files(files, self._task.batch_size, True, None)
        width = self._native.width
        bad = np.array([error is not None for error in errors])
        # Nulls have a place among the numbers too.
        rows = np.zeros((len(files), width), np.float32)
        rows[~bad] = np.frombuffer(values, np.float32).reshape(-1, width)
        features = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), width, mask=pa.array(bad))
        return {"features": features, "error": pa.array(errors, pa.string())}


def _name(part: int) -> str:
    return f"part-{part:06}.parquet"
