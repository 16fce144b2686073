"""What a grid file wants to have reported: something that its runs will have."""

from collections.abc import Collection, Mapping
from typing import Any

from ts2_lightning.experiments.grid.entries import Entry, choose
from ts2_lightning.experiments.grid.expansion import Choices, Row, read_rule
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import TOKEN_STATISTICS

_PARTS = ("baseline", "columns", "planes", "against", "curves")
_LOGS = ("train", "val", "throughput", "drift", "samples")
_CURVES = [f"{log}/{name}" for log in ("train", "val") for name in ("objective", "perplexity", *TOKEN_STATISTICS)]


def read_report(entry: Entry, axes: Choices, rows: list[Row], measured: Collection[str]) -> dict[str, Any]:
    """The report's settings as plain values.

    Args:
        entry: the settings.
        axes: the choices of each axis.
        rows: of the grid.
        measured: the measures that are made of any row, or of the base model.

    Raises:
        UserError: for an axis or a row that there is not, and for names of values that no run can have.
    """
    parts = entry.known(_PARTS)
    for item in listed(parts, "columns"):
        _check_value(item, measured)
    for item in listed(parts, "planes"):
        for value in item.known(("x", "y"), required=("x", "y")).values():
            _check_value(value, measured)
    for item in listed(parts, "against"):
        named = item.known(("axis", "metrics"), required=("axis", "metrics"))
        choose(named["axis"].text, axes.keys(), "axis", named["axis"])
        for value in named["metrics"].items("a list of metrics"):
            _check_value(value, measured)
    for item in listed(parts, "curves"):
        _check_curve(item)
    report: dict[str, Any] = entry.value
    if "baseline" in parts:
        report["baseline"] = _baseline(parts["baseline"], axes, rows)
    return report


def listed(parts: Mapping[str, Entry], key: str) -> list[Entry]:
    """The entries of a list, if it is there."""
    return parts[key].items(f"a list, one `- ` for each {key}") if key in parts else []


def _baseline(entry: Entry, axes: Choices, rows: list[Row]) -> dict[str, str]:
    rule = read_rule(entry, axes, "{objective: CE}")
    meant = sum(rule.matches(row.labels) for row in rows)
    if meant != 1:
        raise entry.error(f"must mean one row of the grid, means {meant}; name the choice of more axes")
    return {axis: choice.text for axis, choice in entry.mapping().items()}


def _check_value(entry: Entry, measured: Collection[str]) -> None:
    """A value is one of a measure that is made, or logged. Those of the user's own measures are not all known."""
    from ts2_lightning.evaluation.registry import describe, described

    name = entry.text
    measure = name.partition("/")[0]
    if measure in _LOGS:
        return
    if measure not in measured:
        there = [value for value in described() if value.partition("/")[0] in measured]
        hint = did_you_mean(name, [*there, *_CURVES]) or f"; it measures {', '.join(measured) or 'nothing'}"
        raise entry.error(f"{name}: the grid does not measure {measure!r}{hint}")
    if describe(name).title == name:
        hint = did_you_mean(name, [value for value in described() if value.startswith(f"{measure}/")])
        if hint:
            raise entry.error(f"{measure} has no value {name!r}{hint}")


def _check_curve(entry: Entry) -> None:
    """Any name may be logged; what looks like one of ours is to be one."""
    from ts2_lightning.evaluation.registry import measures

    name = entry.text
    log, slash, _ = name.partition("/")
    looks_like_ours = not slash or log in measures() or bool(did_you_mean(log, _LOGS))
    if log not in _LOGS and looks_like_ours and (hint := did_you_mean(name, _CURVES)):
        raise entry.error(f"nothing is logged as {name!r}{hint}")
