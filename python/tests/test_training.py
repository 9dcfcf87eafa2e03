"""Training: settings, callbacks, interrupts, resuming."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from conftest import SHORT, engine

import clip_engine
from clip_engine import _engine


def test_callbacks_history_and_file_are_the_same(run, records):
    assert records == {"steps": run.steps, "epochs": run.history}
    assert [record["step"] for record in run.steps] == list(range(1, 10))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["type"] == "epoch"]
    for record, line in zip(run.history, epochs):
        assert (record["epoch"], record["val.top1"]) == (line["epoch"], line["val"]["top1"])
        assert len(record) == 1 + len(line["train"]) + len(line["val"])
    assert len(run.history) == len(epochs) == run.summary["epochs"] == 3


def test_settings_are_kept(run):
    kept = run.settings
    assert {name: kept[name] for name in SHORT} == SHORT
    assert kept["recipe"] == "lora" and kept["demo"] is True and kept["early_stop"] == 3
    names = {entry["name"] for entry in clip_engine.settings()}
    assert set(kept) - {"demo"} <= names


def test_settings_are_the_flags():
    shown = engine("train", "--help").stdout
    for entry in clip_engine.settings():
        assert f" {entry['flag']} " in shown.replace("\n", " \n"), entry


def test_interrupted_twice_and_resumed_is_unbroken(run, tmp_path, capsys):
    path = tmp_path / "run"

    def in_the_second_epoch(record):
        if record["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        clip_engine.train(output=path, progress=False, on_step=in_the_second_epoch, **SHORT)
    assert "\n" not in str(caught.value)
    broken = clip_engine.Run(path)
    assert [record["epoch"] for record in broken.history] == [1]
    with pytest.raises(clip_engine.EngineError, match="not finished"):
        _ = broken.summary
    assert "not finished" in broken._repr_html_()

    def after_the_second_epoch(record):
        assert record["epoch"] == 2
        os.kill(os.getpid(), signal.SIGINT)
        # Python's handler runs here, or, in another thread than the main one, meanwhile.
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        clip_engine.train(output=path, resume=True, progress=False, on_epoch=after_the_second_epoch)
    assert [record["epoch"] for record in broken.history] == [1, 2]

    capsys.readouterr()
    resumed = clip_engine.train(output=path, resume=True)
    output = capsys.readouterr()
    assert "3/3" in output.out and "1/3" not in output.out
    for name in ("adapter/adapter_model.safetensors", "head.safetensors"):
        assert (path / name).read_bytes() == (run.path / name).read_bytes(), name
    assert resumed.summary["test"] == run.summary["test"]
    assert resumed.history == run.history


def test_wrong_settings(tmp_path):
    with pytest.raises(TypeError, match="'epoch' is not a setting; did you mean 'epochs'"):
        clip_engine.train(epoch=3)
    with pytest.raises(clip_engine.SettingError) as caught:
        clip_engine.train(output=tmp_path / "run", epochs="many")
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, clip_engine.EngineError)
    command = engine("train", "--demo", "--output", tmp_path / "run", "--epochs", "many")
    assert (command.returncode, command.stderr) == (2, f"error: {caught.value}\n")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced_unasked(run):
    with pytest.raises(clip_engine.EngineError) as caught:
        clip_engine.train(output=run.path, progress=False, **SHORT)
    assert not isinstance(caught.value, ValueError)
    assert engine("train", "--demo", "--output", run.path, "--quiet").stderr == f"error: {caught.value}\n"
    assert run.summary["epochs"] == 3


def test_no_run():
    with pytest.raises(clip_engine.EngineError, match=r"nowhere: no config\.toml here"):
        clip_engine.Run("nowhere")


class InFinalFit:
    """Interrupts when crops are embedded for the second time, which is for the fit to all photos."""

    fits = 0

    def begin(self, task, total, is_bytes):
        self.fits += task == "features of crops"
        if self.fits == 2:
            raise KeyboardInterrupt

    def __getattr__(self, name):
        return lambda *arguments: None


def test_a_ladder_that_is_stopped_in_its_final_fit_keeps_the_best_so_far(tmp_path):
    given = {"demo": "true", "recipe": "auto", "final_fit": "true", "epochs": "1", "shots": "2", "lr_lora": "0.0008"}
    given = {name: [value] for name, value in given.items()}
    watch = InFinalFit()
    with pytest.raises(KeyboardInterrupt):
        _engine.train(given, str(tmp_path / "run"), False, False, watch)
    assert watch.fits == 2
    ladder = clip_engine.Run(tmp_path / "run").summary["ladder"]
    assert "stopped before the end" in ladder["reason"]
    assert [rung["kind"] for rung in ladder["rungs"]][-1] == "blend"
