"""The command that the package installs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from conftest import SHORT, engine

import clip_engine


def test_version():
    assert engine("--version").stdout == f"engine {clip_engine.__version__}\n"


def test_interrupt_stops_cleanly(tmp_path):
    path = tmp_path / "run"
    command = "from clip_engine._command import main; main()"
    arguments = ["train", "--demo", "--epochs", "100000", "--early-stop", "off", "--shots", SHORT["shots"]]
    arguments += ["--output", path]
    process = subprocess.Popen([sys.executable, "-c", command, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not ((path / "config.toml").exists() and clip_engine.Run(path).history):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode != 0
    assert "Traceback" not in said and said.splitlines()[-1].startswith("error: ") and "--resume" in said
