"""What there is in the cluster, and how it is shared out."""

from __future__ import annotations

import json
import math
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import ray

from .. import _engine

UNFINISHED = ".unfinished-"
"""Begins the names of files that are being written."""
CPUS = 4
"""Of a worker without a GPU, where nodes have as many: each has a model of its own in memory."""


@dataclass(frozen=True)
class Share:
    """What a worker gets, and how many such workers there is room for."""

    cpus: float
    gpus: float
    workers: int
    working_directory: str
    """That of the process that asked: relative paths mean the same everywhere."""

    def apply(self) -> str:
        """Has this process use no more than the share. Returns the device to open."""
        os.chdir(self.working_directory)
        # Read when the engine's first thread starts.
        os.environ["RAYON_NUM_THREADS"] = str(max(1, math.floor(self.cpus)))
        return "cuda" if self.gpus else "cpu"


def share(cpus: Optional[float], gpus: Optional[float]) -> Share:
    """A GPU for each worker where nodes have GPUs, with as many CPUs as there are for it; otherwise a few CPUs.

    Raises EngineError where no node has as much. Starts Ray, or connects to a cluster, if that was not done before.
    """
    if not ray.is_initialized():
        ray.init()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= gpus]
    if cpus is None:
        least = min((node["CPU"] * gpus // node["GPU"] if gpus else node["CPU"] for node in nodes), default=1)
        cpus = max(1, least if gpus else min(CPUS, least))
    workers = sum(int(min(node["CPU"] // cpus, node["GPU"] // gpus if gpus else math.inf)) for node in nodes)
    if workers == 0:
        raise _engine.EngineError(f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs; ask for less")
    return Share(cpus, gpus, workers, os.getcwd())


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file that is there when it is whole."""
    unfinished = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    write(unfinished)
    with open(unfinished, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def open_folder(folder: Path, what: str, name: str, how: dict[str, Any], resume: bool) -> None:
    """Makes the folder of results, which follow from `how`, as a file of this name there says; or goes on with it.

    Raises EngineError for one that is there and not to be gone on with, and for one that follows from something else.
    """
    manifest, how = folder / name, json.loads(json.dumps(how, default=str))
    if manifest.exists():
        if not resume:
            raise _engine.EngineError(f"{folder}: a {what} is there already; resume=True goes on with it")
        known = json.loads(manifest.read_text())
        for key, value in how.items():
            if known.get(key) != value:
                problem = f"{key} of the {what} there is {known.get(key)}, not {value}; name another folder"
                raise _engine.EngineError(f"{folder}: {problem}")
        return
    if folder.exists() and any(folder.iterdir()):
        raise _engine.EngineError(f"{folder}: not empty, and no {what}; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    replace(manifest, lambda path: path.write_text(json.dumps(how, indent=2) + "\n"))
