"""Training, and what a run leaves."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from . import _engine, _html, _images
from ._pictures import Plots
from ._progress import Callback, Watch, flat
from ._settings import Place, source, text_of, texts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import numpy.typing as npt


def train(
    data: Place = "demo",
    *,
    model: Optional[Place] = None,
    recipe: Optional[str] = "lora",
    output: Optional[Place] = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    on_step: Callback = None,
    on_epoch: Callback = None,
    **settings: Any,
) -> Run:
    """Fine-tunes a CLIP on photos, and returns the run.

    data: a folder of photos, a list of them, "flowers102", or "demo", the flowers in the package (a folder of that
        name is "./demo").
    model: an id of the hub or a folder; openai/clip-vit-base-patch32 unless named, and the demo's own for the demo.
    recipe: "auto", "lora", "linear", "mixup", "triplet", "vpt" or "clip-lora".
    output: folder of the run; ``runs/NAME`` by the name of the data unless named.
    overwrite: replaces a run that is there.
    resume: continues the run in `output`, with its own data and recipe, whatever is given here.
    on_step, on_epoch: called with a dict as in `Run.steps` and `Run.history`, as soon as it is known. What they
        raise stops the training cleanly, and is raised again.
    settings: all others of `settings`, such as ``epochs=20``; None is not given.

    An interrupt (Ctrl-C, the notebook's stop button) stops cleanly and raises KeyboardInterrupt; `resume` goes on
    after the last finished epoch.
    """
    given = texts({**settings, "model": model, "recipe": None if resume else recipe})
    if not resume or output is None:
        given.update(source(data))
    with Watch(progress, on_step, on_epoch) as watch:
        return Run(_engine.train(given, text_of(output), overwrite, resume, watch))


class Evaluation(dict[str, Any]):
    """Scores on a split, by name: ``top1``, ``macro_f1``, ``nll``, ``ece`` and others. A table in notebooks.

    split: its name. class_names: C names.
    classes: a dict for each class: ``name``, ``images``, ``predicted``, ``right``, ``precision``, ``recall``, ``f1``.
    confusion: images by true class (rows) and predicted class, int64 [C, C].
    calibration: a dict for each of 15 bins of confidence: ``images``, their mean ``confidence`` and ``accuracy``.
    """

    def __init__(self, scores: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        super().__init__(scores)
        self.split: str = report["split"]
        self.class_names: list[str] = report["class_names"]
        classes = zip(self.class_names, report["classes"])
        self.classes = _html.Table({"name": name, **entry} for name, entry in classes)
        self.confusion: npt.NDArray[np.int64] = np.array(report["confusion"], np.int64)
        self.calibration = _html.Table(report["calibration"])

    def _repr_html_(self) -> str:
        summary = f"<summary>{len(self.classes)} classes</summary>"
        return f"{_html.scores({self.split: self})}<details>{summary}{self.classes._repr_html_()}</details>"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of an image."""

    path: Optional[str]
    """None for an image that was no file."""
    classes: list[str]
    """The most probable class first."""
    probabilities: npt.NDArray[np.float64]
    """In the order of `classes`, [K]."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[0]

    @property
    def probability(self) -> float:
        """That of `label`."""
        return float(self.probabilities[0])


class Run:
    """A run directory: what it holds, and what its classifier can do. Notebooks show its summary.

    plot: its pictures: ``plot.curves()``, ``losses``, ``classes``, ``confusion``, ``calibration``, of some recipes
        ``triplets`` or ``ladder``.
    """

    def __init__(self, path: Place) -> None:
        self.path = Path(path)
        if not (self.path / "config.toml").is_file():
            raise _engine.EngineError(f"{self.path}: no config.toml here; name the output of a training run")
        self.plot = Plots(self.path / "plots")
        self._opened: Optional[tuple[Any, Any]] = None

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        return f"Run({os.fspath(self)!r})"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the run, as in config.toml, by the names that `train` takes."""
        values = tomllib.loads(self._file("config.toml").decode())
        return {name.replace("-", "_"): value for name, value in values.items()}

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: the kept epoch on ``val`` and ``test``, plain CLIP as ``zero_shot``, and others."""
        return json.loads(self._file("summary.json"))

    @property
    def class_names(self) -> list[str]:
        """C names, in the order of the class numbers."""
        head = self._file("head.safetensors")
        # The length of the header, and the header.
        header = json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])
        return json.loads(header["__metadata__"]["class_names"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """A dict for each epoch: ``epoch``, ``train.loss``, ``val.top1`` and others."""
        return _html.Table(self._records("epoch"))

    @property
    def steps(self) -> list[dict[str, Any]]:
        """A dict for each training step: ``epoch``, ``step``, ``loss``, ``lr`` and others."""
        return self._records("step")

    @property
    def evaluation(self) -> Evaluation:
        """That of the kept epoch, which training ended with. Nothing is computed."""
        report = json.loads(self._file("evaluation.json"))
        return Evaluation(report["metrics"], report)

    def evaluate(
        self, split: str = "test", *, data: Optional[Place] = None, progress: bool = False, **settings: Any
    ) -> Evaluation:
        """Evaluates the classifier on "train", "val", "test" or "all" images.

        data: other photos of the same classes. settings: those that say how photos are read, and ``model``,
        ``batch_size``, ``device`` and ``precision``.
        """
        given = texts({**settings, "data": data})
        with Watch(progress) as watch:
            scores = json.loads(_engine.evaluate(os.fspath(self), split, given, watch))
        beside = ("split", "class_names", "classes", "confusion", "calibration")
        return Evaluation(scores, {key: scores.pop(key) for key in beside})

    def predict(
        self,
        images: _images.Images,
        *,
        top_k: int = 5,
        batch_size: int = 32,
        model: Optional[Place] = None,
        device: str = "auto",
        precision: Optional[str] = None,
        progress: bool = False,
    ) -> list[Prediction]:
        """The classes of images, in their order.

        images: one or several. An image is a path (a folder is searched with its subfolders), a Pillow image, or a
            uint8 array [H, W, 3] of RGB or [H, W] of grey; a uint8 array [N, H, W, 3] is N images.
        top_k: classes for each image. model: where the model is now, if it was moved.

        Raises EngineError for a file that cannot be read. The model stays open for the next call.
        """
        predictions = []
        with Watch(progress) as watch:
            native = self._native(_engine.Predictor, watch, os.fspath(self), text_of(model), device, precision)
            for are_files, group in _images.groups(images, self._is_upright, watch):
                found = (native.files if are_files else native.arrays)(group, top_k, batch_size, watch)
                for path, choices, problem in found:
                    if problem is not None:
                        raise _engine.EngineError(problem)
                    names = [native.class_names[number] for number, _ in choices]
                    probabilities = np.array([probability for _, probability in choices])
                    predictions.append(Prediction(os.fspath(path) if are_files else None, names, probabilities))
        return predictions

    def embed(
        self,
        images: _images.Images,
        *,
        batch_size: int = 32,
        model: Optional[Place] = None,
        device: str = "auto",
        precision: Optional[str] = None,
        progress: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Features of images by what was trained, [N, E], each of length 1. Arguments as in `predict`."""
        with Watch(progress) as watch:
            native = self._native(_engine.Model, watch, text_of(model), os.fspath(self), device, precision)
            return _images.embed(native, images, batch_size, self._is_upright, watch)

    def export(
        self,
        *,
        peft: Optional[Place] = None,
        merged: Optional[Place] = None,
        dtype: str = "f32",
        onnx: Optional[Place] = None,
        onnx_input: str = "pixels",
        overwrite: bool = False,
    ) -> None:
        """Writes the run for other programs, into a folder.

        peft: the adapter in PEFT's format, the head and the prompts. merged: the whole model in Hugging Face's format,
        weights as `dtype` ("f32", "f16", "bf16"). onnx: an ONNX model of images to probabilities; its images are
        "pixels", uint8 [N, S, S, 3] as photos are cropped, or "normalised", float32 [N, 3, S, S]. overwrite: replaces an
        earlier export.
        """
        if peft is None and merged is None and onnx is None:
            raise TypeError("export takes a folder as peft, merged or onnx, or several")
        with Watch(False) as watch:
            folders = (text_of(peft), text_of(merged), dtype, text_of(onnx), onnx_input)
            _engine.export(os.fspath(self), *folders, overwrite, watch)

    def _repr_html_(self) -> str:
        if not (self.path / "summary.json").exists():
            return _html.table(["run", "epochs"], [[os.fspath(self), f"{len(self.history)}, not finished"]])
        summary = self.summary
        plain, baseline, tested = summary["zero_shot"], summary["baseline"], summary["test"]
        columns = {f"plain CLIP, {plain['split']}": plain}
        if baseline:
            columns[f"logistic regression, {baseline['split']}"] = baseline
        columns[f"fine-tuned, {'test' if tested else 'val'}"] = tested or summary["val"]
        kept = f"epoch {summary['best_epoch']} of {summary['epochs']} kept; {summary['seconds']:.1f} s"
        rows = [["run", os.fspath(self)], ["recipe", summary["recipe"]], ["training", kept]]
        if summary.get("ladder"):
            rows.append(["kept because", summary["ladder"]["reason"]])
        return _html.scores(columns) + _html.table(["", ""], rows)

    @property
    def _is_upright(self) -> bool:
        # Runs of before there was a choice took images as they are stored.
        return self.settings.get("orientation", "ignore") == "exif"

    def _native(self, kind: Callable[..., Any], watch: Watch, *arguments: Optional[str]) -> Any:
        """The native object of the last call, if it is the same one and the run's files are those of then."""
        head = self.path / "head.safetensors"
        key = (kind, arguments, head.exists() and head.stat().st_mtime_ns)
        if self._opened is None or self._opened[0] != key:
            self._opened = (key, kind(*arguments, watch))
        return self._opened[1]

    def _file(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            remedy = "the run is not finished; continue it by train(output=…, resume=True)"
            raise _engine.EngineError(f"{self.path}: no {name} here; {remedy}") from None

    def _records(self, kind: str) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl; one that is still being written is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [flat(record) for record in records if record.pop("type") == kind]
