"""What the engine says while it works: bars, lines, records."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any, Callable, Optional

with warnings.catch_warnings():
    # A notebook without ipywidgets has no bars; the lines are enough.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

Callback = Optional[Callable[[dict[str, Any]], object]]


class Watch:
    """Watches one call of the native module. There is one bar for all its tasks, and it goes when the call ends.

    Without `progress` warnings are all that is written.
    """

    def __init__(self, progress: bool, on_step: Callback = None, on_epoch: Callback = None) -> None:
        self._progress = progress
        self._callbacks = {"step": on_step, "epoch": on_epoch}
        self._bar: Any = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, task: str, total: int, is_bytes: bool) -> None:
        if not self._progress:
            return
        if self._bar is None:
            # On a terminal or as a widget, not in files.
            self._bar = tqdm(disable=None, leave=False, dynamic_ncols=True)
        self._bar.unit, self._bar.unit_scale = ("B", True) if is_bytes else ("it", False)
        self._bar.set_description(task, refresh=False)
        self._bar.set_postfix_str("", refresh=False)
        self._bar.reset(total)

    def advance(self, units: int) -> None:
        if self._bar is not None:
            self._bar.update(units)

    def state(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def finish(self) -> None:
        """The bar stays until the next task, or the end."""

    def line(self, text: str) -> None:
        if self._progress:
            tqdm.write(text)

    def warn(self, text: str) -> None:
        tqdm.write(f"warning: {text}", file=sys.stderr)

    def record(self, text: str) -> None:
        record = flat(json.loads(text))
        callback = self._callbacks.get(record.pop("type"))
        if callback is not None:
            callback(record)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """{"epoch": 1, "val": {"top1": 0.9}} as {"epoch": 1, "val.top1": 0.9}."""
    result: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            result.update((f"{key}.{inner}", number) for inner, number in value.items())
        else:
            result[key] = value
    return result
