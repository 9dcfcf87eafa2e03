"""What the peers for a GPU share: time in the device's own clock, percentiles, the machine, their JSON."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path


class Clock:
    """Marks in the order of the device's work; on the CPU, of the host's."""

    def __init__(self, device):
        self.on_gpu, self.marks = device.type == "cuda", []

    def mark(self) -> None:
        if not self.on_gpu:
            return self.marks.append(time.perf_counter())
        import torch
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """From each mark to the next; waits for the last one."""
        if not self.on_gpu:
            return [b - a for a, b in zip(self.marks, self.marks[1:])]
        self.marks[-1].synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:])]


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = lambda q: ordered[round(q * (len(ordered) - 1))]
    return {"p20_s": at(0.2), "p50_s": statistics.median(ordered), "p80_s": at(0.8)}


def machine(device) -> dict:
    import torch
    found = {"python": platform.python_version(), "cpu_cores": os.cpu_count()}
    for package in ("torch", "transformers", "peft", "triton"):
        found[package] = version(package)
    if device.type != "cuda":
        return {"device": f"CPU, {torch.get_num_threads()} threads", **found}
    about = torch.cuda.get_device_properties(device)
    return {
        "device": about.name,
        "compute_capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory_mib": about.total_memory / 2**20,
        "l2_mib": about.L2_cache_size / 2**20,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **found,
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The driver's version, which PyTorch does not tell; none where nvidia-smi does not either."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.splitlines()[0].strip() if said.returncode == 0 and said.stdout else None


def chosen(text: str, known) -> list[str]:
    """A list of words from the command line, each of which must be known."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word}: not one of {', '.join(known)}")
    return words


def write_json(path: Path, value) -> None:
    """Whole or not at all: whoever stops the script in the middle finds the previous state."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)
