"""Predictions, features and sweeps on a Ray cluster of two nodes of a CPU each, on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from conftest import REPOSITORY, SHORT
from ray import tune
from ray.cluster_utils import Cluster

import clip_engine
import clip_engine.ray

SIZE = 4
"""Photos a part, and a batch: the same batches by one process give the same bits."""
BAD = (5, 17)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    # Its threads are those of a worker.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def files(photos, tmp_path_factory) -> list[str]:
    """The photos, and at BAD one that is none and one that is not there."""
    bad = tmp_path_factory.mktemp("bad") / "none.jpg"
    bad.write_text("no image")
    found = list(map(str, sorted(photos.iterdir())))
    return [*found[: BAD[0]], str(bad), *found[BAD[0] :], str(bad.with_name("nowhere.jpg"))]


def without(places: tuple[int, ...], items: list) -> list:
    return [item for at, item in enumerate(items) if at not in places]


def good_parts(files: list[str]) -> list[list[str]]:
    """By part what can be read: the batches of a worker."""
    parts = [range(first, min(first + SIZE, len(files))) for first in range(0, len(files), SIZE)]
    return [[files[at] for at in part if at not in BAD] for part in parts]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def processes(name: bytes) -> list[int]:
    """Numbers of Ray's processes of this name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::" + name):
                found.append(int(entry.parent.name))
        except OSError:
            pass
    return found


@pytest.fixture(scope="module")
def predicted(run, files, tmp_path_factory) -> Path:
    """Parts that one worker made."""
    out = tmp_path_factory.mktemp("ray") / "predicted"
    made = clip_engine.ray.predict(run, files, out, part_size=SIZE, batch_size=SIZE, workers=1, progress=False)
    assert (made.photos, made.parts, made.kept, made.bad) == (18, 5, 0, 2)
    return out


def test_predictions_are_those_of_one_process(run, files, predicted):
    rows = pq.read_table(predicted).to_pylist()
    assert [row["path"] for row in rows] == files
    expected = [each for part in good_parts(files) for each in run.predict(part)]
    assert len(expected) == 16
    for row, alone in zip(without(BAD, rows), expected):
        assert row["error"] is None
        assert (row["label"], row["probability"]) == (alone.label, alone.probability)
        assert (row["classes"], row["probabilities"]) == (alone.classes, alone.probabilities.tolist())
    for row in (rows[at] for at in BAD):
        assert row["path"] in row["error"] and row["label"] is row["probability"] is row["classes"] is None


def test_two_workers_and_one_that_is_killed_make_the_same_parts(run, files, predicted, tmp_path):
    out = tmp_path / "out"
    killed = []

    def kill():
        while not list(out.glob("part-*")):
            time.sleep(0.01)
        killed.append(processes(b"MapWorker(Map(_Worker))"))
        os.kill(killed[0][0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    made = clip_engine.ray.predict(run, files, out, part_size=SIZE, batch_size=SIZE, progress=False)
    killer.join()
    assert len(killed[0]) == 2
    assert made.bad == 2 and contents(out) == contents(predicted)


def test_a_driver_that_is_killed_is_gone_on_with(run, files, predicted, cluster, tmp_path):
    out = tmp_path / "out"
    example = REPOSITORY / "examples" / "ray" / "predict.py"
    command = [sys.executable, example, run, out, *files, f"--part-size={SIZE}", f"--batch-size={SIZE}"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(out.glob("part-*")):
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.01)
    driver.kill()
    driver.communicate()
    (out / ".unfinished-0").write_text("of a worker that died")
    there = len(list(out.glob("part-*")))
    with pytest.raises(clip_engine.EngineError, match="a folder of parts is there already; resume=True"):
        clip_engine.ray.predict(run, files, out, part_size=SIZE, progress=False)
    arguments = {"part_size": SIZE, "batch_size": SIZE, "resume": True, "progress": False}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert re.match(rf"18 photos in 5 parts, [{there}-5] of them from before; 2 could not be read\n", done.stdout)
    assert contents(out) == contents(predicted)

    # What is there belongs to another question.
    with pytest.raises(clip_engine.EngineError, match="part_size of the folder of parts there is 4, not 5"):
        clip_engine.ray.predict(run, files, out, **{**arguments, "part_size": 5})
    with pytest.raises(clip_engine.EngineError, match=r"part-000000\.parquet: made of other photos"):
        clip_engine.ray.predict(run, files[1:], out, **arguments)
    with pytest.raises(clip_engine.EngineError, match=r"part-000002\.parquet: the list ends before it"):
        clip_engine.ray.predict(run, files[: 2 * SIZE], out, **arguments)
    other = shutil.copytree(run, tmp_path / "other")
    with open(other / "head.safetensors", "ab") as head:
        head.write(b" ")
    with pytest.raises(clip_engine.EngineError, match=r"part-000000\.parquet: made by another run or model"):
        clip_engine.ray.predict(other, files, out, **arguments)
    with pytest.raises(clip_engine.EngineError, match="command of the folder of parts there is predict, not embed"):
        clip_engine.ray.embed(files, out, run=run, **arguments)
    assert contents(out) == contents(predicted)


def test_features_are_those_of_one_process(files, tmp_path):
    out = tmp_path / "out"
    made = clip_engine.ray.embed(files, out, model="demo", part_size=SIZE, batch_size=SIZE, progress=False)
    assert (made.photos, made.bad) == (18, 2)
    rows = pq.read_table(out).to_pylist()
    model = clip_engine.load("demo", progress=False)
    expected = np.concatenate([model.embed(part) for part in good_parts(files)])
    features = [row["features"] for row in rows]
    assert np.array_equal(np.array(without(BAD, features), np.float32), expected)
    assert [features[at] for at in BAD] == [None, None] and all(rows[at]["error"] for at in BAD)


def trained(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("adapter/adapter_model.safetensors", "head.safetensors")}


SPACE = {"lr_lora": tune.grid_search([1e-3, 1e-2]), "seed": tune.grid_search([1])}


def test_trials_are_the_runs_of_one_process_and_one_that_is_killed_goes_on(tmp_path):
    out = tmp_path / "sweep"
    # Lines of the first epoch, with measured times, which no second training would give again.
    before = {}

    def first_epochs():
        for path in out.glob("trials/*/metrics.jsonl"):
            lines = path.read_text().splitlines()[:4]
            if len(lines) == 4 and '"type":"epoch"' in lines[3] and (path.parent / "state.safetensors").exists():
                yield path, lines

    def kill():
        while not before:
            before.update(first_epochs())
            time.sleep(0.01)
        for process in processes(b"ImplicitFunc"):
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    sweep = clip_engine.ray.sweep("demo", out, space=SPACE, trials=1, grace=3, progress=False, **SHORT)
    killer.join()
    # Ctrl-C is again what it was.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert all(path.read_text().splitlines()[:4] == lines for path, lines in before.items())
    assert [row["state"] for row in sweep.rows] == ["finished"] * 2, sweep.rows
    assert {(row["lr_lora"], row["seed"]) for row in sweep.rows} == {(1e-3, 1), (1e-2, 1)}
    for row in sweep.rows:
        alone = tmp_path / row["trial"]
        settings = {name: row[name] for name in SPACE}
        run = clip_engine.train(output=alone, data_seed=42, progress=False, **SHORT, **settings)
        assert trained(out / "trials" / row["trial"]) == trained(alone), row
        assert row["val.top1"] == run.summary["val"]["top1"]
        assert row["epochs"] == 3
    scores = [row["val.top1"] for row in sweep.rows]
    assert scores == sorted(scores, reverse=True) and sweep.best.summary["val"]["top1"] == scores[0]
    assert len(sweep.comparison.rows) >= 2 and (out / "comparison" / "report.html").exists()


# Without the text features as a start, rates as low as these leave a head that knows nothing.
RATES = [1e-2, 1e-6, 1e-3, 1e-5]
# One after the other, so that each meets what the ones before it have shown.
SHORTER = {"workers": 1, "trials": 1, "grace": 1, "reduction": 2, "recipe": "linear", "head_init": "random", "shots": 2}


def test_a_sweep_that_is_killed_goes_on_and_stops_what_falls_behind(cluster, tmp_path):
    out = tmp_path / "sweep"
    script = (
        "import ray, sys, clip_engine.ray\n"
        "ray.init(address=sys.argv[1], log_to_driver=False)\n"
        f"space = {{'lr_head': ray.tune.grid_search({RATES})}}\n"
        f"clip_engine.ray.sweep('demo', sys.argv[2], space=space, epochs=3, progress=False, **{SHORTER})\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script, cluster.address, out], stderr=subprocess.PIPE)
    while not list(out.glob("trials/*/summary.json")):
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.05)
    driver.kill()
    driver.communicate()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/summary.json")}

    arguments = {"space": {"lr_head": tune.grid_search(RATES)}, "epochs": 3, "progress": False, **SHORTER}
    with pytest.raises(clip_engine.EngineError, match="a sweep is there already; resume=True"):
        clip_engine.ray.sweep("demo", out, **arguments)
    with pytest.raises(clip_engine.EngineError, match="settings of the sweep there is .*'epochs': 3"):
        clip_engine.ray.sweep("demo", out, resume=True, **{**arguments, "epochs": 4})
    sweep = clip_engine.ray.sweep("demo", out, resume=True, **arguments)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    by_rate = {row["lr_head"]: row for row in sweep.rows}
    assert len(by_rate) == 4 and not any(row["error"] for row in sweep.rows), sweep.rows
    assert by_rate[1e-5]["state"] == "stopped" and by_rate[1e-5]["epochs"] < 3, sweep.rows
    assert by_rate[1e-2]["state"] == "finished" and sweep.best.settings["lr_head"] == 1e-2


def test_what_a_sweep_refuses(tmp_path):
    with pytest.raises(TypeError, match="'lr_loar' is not a setting; did you mean 'lr_lora'"):
        clip_engine.ray.sweep("demo", tmp_path / "sweep", space={"lr_loar": tune.choice([1])})
    with pytest.raises(TypeError, match="rank: given for all trials, and searched"):
        clip_engine.ray.sweep("demo", tmp_path / "sweep", space={"rank": tune.choice([1, 2])}, rank=4)
    with pytest.raises(clip_engine.EngineError, match="no node of the cluster has 2 CPUs"):
        clip_engine.ray.sweep("demo", tmp_path / "sweep", space={"rank": tune.choice([1, 2])}, cpus=2)
    assert not (tmp_path / "sweep").exists()
