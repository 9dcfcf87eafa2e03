"""Tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Callable, Optional


class Table(list[dict[str, Any]]):
    """A list of dicts that notebooks show as a table, with a column for each key."""

    def _repr_html_(self) -> str:
        keys = list(dict.fromkeys(key for row in self for key in row))
        return table(keys, ([row.get(key) for key in keys] for row in self))


def table(header: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table. Text is aligned left, unless it begins with a digit; numbers are short."""

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        is_text = isinstance(value, str) and not value[:1].isdigit()
        return f"<td{' style=text-align:left' if is_text else ''}>{escape(text)}</td>"

    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def number(digits: int) -> Callable[[Optional[float]], Optional[str]]:
    return lambda value: None if value is None else f"{value:.{digits}f}"


def percent(fraction: Optional[float]) -> Optional[str]:
    return None if fraction is None else f"{100 * fraction:.1f} %"


SCORES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "images": ("images", lambda count: count),
    "top1": ("top-1", percent),
    "top5": ("top-5", percent),
    "macro_f1": ("macro F1", percent),
    "nll": ("NLL", number(3)),
    "brier": ("Brier", number(3)),
    "ece": ("ECE", percent),
    "text_top1": ("text top-1", percent),
    "loss": ("loss", number(4)),
}
"""How scores are called and written."""


def scores(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each score that a column has."""
    rows = [[label] + [form(column.get(key)) for column in columns.values()] for key, (label, form) in SCORES.items()]
    return table(["", *columns], (row for row in rows if any(cell is not None for cell in row[1:])))
