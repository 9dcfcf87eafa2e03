"""Trainings with many settings, on a Ray cluster, the poor ones stopped early."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import ray.tune
from ray.tune.schedulers import ASHAScheduler

from .. import _engine, _html
from .._compare import Comparison, compare
from .._run import Run, train
from .._settings import Place, texts
from ._cluster import Share, open_folder, share

MANIFEST = "sweep.json"
EXPERIMENT = "tune"
ENDLESS = 1_000_000
COMPARED = 8
"""Runs at the most that are put beside each other."""


class Sweep:
    """A folder of runs with different settings; notebooks show its table.

    rows: a dict for each trial, the best first: ``trial``, ``state`` ("finished", "stopped" by the scheduler, "failed"),
        ``epochs`` trained, the metric (of the kept epoch, where the run finished, otherwise of the last), the settings
        that were searched, and ``error``. pandas.DataFrame takes them.
    best: the best finished run. comparison: finished runs beside each other, 8 at the most; its page is in
        ``comparison``.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]], comparison: Optional[Comparison]) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = _html.Table(rows)
        self.comparison = comparison

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def best(self) -> Run:
        if not self.rows or self.rows[0]["state"] != "finished":
            raise _engine.EngineError(f"{self.path}: no trial finished; `rows` says what became of them")
        return Run(_directory(self.path, self.rows[0]["trial"]))

    def _repr_html_(self) -> str:
        return self.rows._repr_html_()  # type: ignore[attr-defined]


def sweep(
    data: Place = "demo",
    output: Place = "runs/sweep",
    *,
    space: Mapping[str, Any],
    trials: int = 16,
    metric: str = "val.top1",
    mode: str = "max",
    grace: int = 4,
    reduction: int = 3,
    seed: int = 42,
    workers: Optional[int] = None,
    cpus: Optional[float] = None,
    gpus: Optional[float] = None,
    model: Optional[Place] = None,
    recipe: str = "lora",
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Sweep:
    """Trains with settings drawn from `space`, and stops early what falls behind (ASHA, Li et al. 2020).

    data, model, recipe, settings: as in `clip_engine.train`, for all trials; places the same on all nodes.
    output: folder of the sweep: ``trials/ID`` is a run directory each, ``comparison`` the page of the best, ``tune``
        what Ray Tune keeps; on a disk that all nodes share.
    space: settings by name, each a domain of Ray Tune: ``ray.tune.loguniform(1e-4, 1e-2)``, ``choice([4, 8])``,
        ``grid_search([1, 2, 3])``. trials: draws; each is trained with every point of a grid. With ``seed`` among them
        all trials still see the same images: those of ``data_seed``, or of this sweep's seed.
    metric: a number of ``Run.history`` to compare epochs by, ``mode`` "max" or "min".
    grace: epochs that each trial trains. Then, and at `reduction` times as many and so on, the best of every
        `reduction` trials go on.
    seed: of the draws. workers, cpus, gpus: as in `predict`.
    resume: goes on with a sweep that was interrupted: each trial behind its last finished epoch, to the same bits.

    A trial whose process dies is started again, three times at the most. Test images are looked at by finished runs
    alone, and not for the order of `rows`. Raises EngineError for a sweep that is there, unless it is to be resumed.
    """
    names = [*settings, *space]
    texts(dict.fromkeys(names, 1))
    if twice := set(space) & {*settings, "model", "recipe", "data"}:
        raise TypeError(f"{', '.join(sorted(twice))}: given for all trials, and searched")
    if mode not in ("max", "min"):
        raise ValueError(f"mode is {mode!r}; it is 'max' or 'min'")
    folder = Path(os.path.abspath(output))
    if "seed" in space:
        settings.setdefault("data_seed", seed)
    fixed = {"model": model, "recipe": recipe, **settings}
    fixed = {name: value for name, value in fixed.items() if value is not None}
    given = share(cpus, gpus)
    how = {"trials": trials, "metric": metric, "mode": mode, "grace": grace, "reduction": reduction, "seed": seed}
    searched = {name: _shown(domain) for name, domain in space.items()}
    how = {"data": os.fspath(data), "settings": fixed, "space": searched, **how}
    open_folder(folder, "sweep", MANIFEST, how, resume)

    trial = ray.tune.with_parameters(_trial, data=data, fixed=fixed, folder=folder, share=given)
    trial = ray.tune.with_resources(trial, {"cpu": given.cpus, "gpu": given.gpus})
    experiment = folder / EXPERIMENT
    if ray.tune.Tuner.can_restore(experiment):
        tuner = ray.tune.Tuner.restore(
            os.fspath(experiment), trial, restart_errored=True, resume_unfinished=True, param_space=dict(space)
        )
    else:
        # Trials end by themselves.
        scheduler = ASHAScheduler("epoch", max_t=ENDLESS, grace_period=grace, reduction_factor=reduction)
        tuner = ray.tune.Tuner(
            trial,
            param_space=dict(space),
            tune_config=ray.tune.TuneConfig(
                metric=metric,
                mode=mode,
                scheduler=scheduler,
                search_alg=ray.tune.search.BasicVariantGenerator(
                    # Here and not in TuneConfig, which forgets it when a sweep is restored.
                    max_concurrent=workers or 0,
                    constant_grid_search=True,
                    random_state=seed,
                ),
                num_samples=trials,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=ray.tune.RunConfig(
                name=EXPERIMENT,
                storage_path=os.fspath(folder),
                failure_config=ray.tune.FailureConfig(max_failures=3),
                verbose=1 if progress else 0,
            ),
        )
    with _interrupts_kept():
        results = tuner.fit()
    rows = [_row(folder, result, metric, list(space)) for result in results]
    rows.sort(key=lambda row: _order(row, metric, mode))
    finished = [_directory(folder, row["trial"]) for row in rows if row["state"] == "finished"]
    comparison = None
    if finished:
        comparison = compare(finished[:COMPARED], out=folder / "comparison", overwrite=True)
    return Sweep(Path(output), rows, comparison)


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Ray Tune handles Ctrl-C in its own way, and would go on to when it is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _trial(config: dict[str, Any], *, data: Place, fixed: dict[str, Any], folder: Path, share: Share) -> None:
    """Trains, or goes on where a process before this one stopped."""
    device = share.apply()
    path = _directory(folder, ray.tune.get_context().get_trial_id())

    def report(epoch: dict[str, Any]) -> None:
        # The last one when the run is finished: reports are where a scheduler stops a trial.
        if epoch["epoch"] < Run(path).settings["epochs"]:
            ray.tune.report(epoch)

    finished = _is_finished(path)
    # Written after the record of an epoch; a run that died before the first has nothing to go on with.
    resume = not finished and (path / "state.safetensors").exists()
    if finished or resume:
        # They may not have arrived, and a scheduler that was restored may know none.
        for epoch in Run(path).history:
            report(epoch)
    if not finished:
        given = {} if resume else {**fixed, **config}
        given["device"] = device
        train(data, output=path, overwrite=not resume, resume=resume, progress=False, on_epoch=report, **given)
    ray.tune.report(Run(path).history[-1])


def _directory(folder: Path, trial: str) -> Path:
    return folder / "trials" / trial


def _is_finished(run: Path) -> bool:
    return (run / "summary.json").exists()


def _row(folder: Path, result: ray.tune.Result, metric: str, searched: list[str]) -> dict[str, Any]:
    trial = Path(result.path).name
    path = _directory(folder, trial)
    history = Run(path).history if (path / "config.toml").exists() else []
    row: dict[str, Any] = {"trial": trial, "state": "failed" if result.error else "stopped", "epochs": len(history)}
    shown = history[-1] if history else {}
    if not result.error and _is_finished(path):
        row["state"] = "finished"
        shown = history[Run(path).summary["best_epoch"] - 1]
    row.update({name: shown.get(name) for name in (metric, "val.loss")})
    row.update({name: (result.config or {}).get(name) for name in searched})
    row["error"] = str(result.error) if result.error else None
    return row


def _order(row: dict[str, Any], metric: str, mode: str) -> tuple[Any, ...]:
    """Finished ones first, the best first; of equals that with the lower loss."""
    state = ("finished", "stopped", "failed").index(row["state"])
    score, loss = row[metric], row["val.loss"]
    score = float("inf") if score is None else -score if mode == "max" else score
    return state, score, float("inf") if loss is None else loss, row["trial"]


def _shown(domain: Any) -> str:
    """A domain of Ray Tune in words that are the same in the next process."""
    if isinstance(domain, ray.tune.search.sample.Domain):
        return f"{type(domain).__name__} {domain.domain_str} {domain.get_sampler()}"
    return str(domain)

