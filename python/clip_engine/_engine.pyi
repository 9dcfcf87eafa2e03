"""The native module. Tensors cross as bytes, what has more than numbers as JSON."""

import os
from typing import Optional, Protocol, Union

__version__: str

class EngineError(RuntimeError):
    """What the engine refuses or cannot do, in one line: the one that the command prints behind "error: "."""

class SettingError(EngineError, ValueError):
    """A setting that cannot be: exit status 2 of the command."""

class Watcher(Protocol):
    """Called from any thread. What a method raises stops the work, and is raised again by the function."""

    def begin(self, task: str, total: int, is_bytes: bool) -> None: ...
    def advance(self, units: int) -> None: ...
    def state(self, text: str) -> None: ...
    def finish(self) -> None: ...
    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def record(self, text: str) -> None:
        """A line of metrics.jsonl, as it is written."""

Watch = Optional[Watcher]
Place = Union[str, os.PathLike[str]]

Given = dict[str, list[str]]
"""Names of settings, with the texts that their flags take."""

Decoded = tuple[int, int, bytes]
"""Height, width, and RGB pixels [H, W, 3]."""

Prediction = tuple[os.PathLike[str], list[tuple[int, float]], Optional[str]]
"""Path of an image; numbers of classes with their probabilities, the most probable first; why it was not read."""

def settings() -> str: ...
def train(given: Given, output: Optional[Place], overwrite: bool, resume: bool, watch: Watch) -> os.PathLike[str]: ...
def compare(runs: list[str], out: Optional[Place], overwrite: bool, watch: Watch) -> str:
    """Returns comparison.json."""

def evaluate(directory: Place, split_name: str, given: Given, watch: Watch) -> str:
    """Returns what ``engine eval --json`` prints, with ``split`` and ``class_names``."""

def zero_shot(split_name: str, given: Given, watch: Watch) -> str: ...
def photos(
    split_name: str, given: Given, watch: Watch
) -> tuple[bytes, int, list[int], list[str], list[Optional[os.PathLike[str]]]]:
    """Pixels u8 [N, S, S, 3], S, labels [N], names of the classes, paths [N]."""

def list_photos(paths: list[str], watch: Watch) -> list[os.PathLike[str]]:
    """Files as they are, and the photos of folders."""

def export(
    directory: Place,
    peft: Optional[Place],
    merged: Optional[Place],
    dtype: str,
    onnx: Optional[Place],
    onnx_input: str,
    overwrite: bool,
    watch: Watch,
) -> None: ...
def main(arguments: list[str]) -> int:
    """The command, by its arguments without the program's name. Returns the exit status."""

class Predictor:
    class_names: list[str]

    def __init__(
        self, directory: Place, model: Optional[Place], device: str, precision: Optional[str], watch: Watch
    ) -> None: ...
    def files(self, files: list[str], top_k: int, batch_size: int, watch: Watch) -> list[Prediction]: ...
    def arrays(self, images: list[Decoded], top_k: int, batch_size: int, watch: Watch) -> list[Prediction]: ...

class Model:
    """Features are f32 [N, E]."""

    width: int
    image_size: int
    weights: str
    """A hash of the model's weights."""

    def __init__(
        self,
        name: Optional[Place],
        directory: Optional[Place],
        device: str,
        precision: Optional[str],
        watch: Watch,
    ) -> None:
        """Without a name it is the model of the run in the directory."""

    def embed_files(
        self, files: list[str], batch_size: int, skip_bad_images: bool, watch: Watch
    ) -> tuple[bytes, list[Optional[str]]]:
        """Features of the files that can be read, and by file why it cannot."""

    def embed_arrays(self, images: list[Decoded], batch_size: int, watch: Watch) -> bytes: ...
    def embed_text(self, texts: list[str], watch: Watch) -> bytes: ...
