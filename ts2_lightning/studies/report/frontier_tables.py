"""Tables of frontiers: diversity at matched quality, and the fronts; as tables, as CSV and as plain values."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ts2_lightning.studies.report.frontiers import Cloud, Frontier, Matched, Place
from ts2_lightning.studies.report.fronts import Match, Outcome
from ts2_lightning.studies.report.results import Results
from ts2_lightning.studies.report.statistics import CONFIDENCE, paired_difference, student_interval
from ts2_lightning.studies.report.tables import (
    Cell,
    Mark,
    Table,
    difference_text,
    mean_text,
    titled,
    told_apart_mark,
)

_SETTINGS_SHOWN = 2
_WHY: dict[Outcome, str] = {
    "reached": "reached",
    "better": "better at every setting",
    "worse": "worse at every setting",
    "gap": "between settings of which one is missing",
    "none": "not measured",
}
_NO_RUNS = "these rows have no runs"
_POINTS = (
    "frontier", "curve", "setting", "quality", "quality sd", "diversity", "diversity sd", "n", "on its front",
    "on the front of all",
)  # fmt: skip
_MATCHED = ("frontier", "at", "curve", "seed", "quality", "outcome", "diversity", "low", "high", "from", "to")


def frontier_title(results: Results, frontier: Frontier) -> str:
    """The heading of a frontier."""
    quality, diversity = (results.describe(name).title for name in _names(frontier))
    return f"{quality} against {diversity}, along {' and '.join(frontier.settings.dials)}"


def _names(frontier: Frontier) -> tuple[str, str]:
    return frontier.settings.quality, frontier.settings.diversity


def rule_said(results: Results, frontier: Frontier) -> str:
    """How diversity at a quality is found."""
    diversity = results.describe(frontier.settings.diversity)
    most = "largest" if diversity.better == "higher" else "smallest"
    several = len(frontier.settings.dials) > 1
    said = [
        f"Between two neighbouring settings of a dial{', the other dial held' if several else ''}, {diversity.title} "
        "is taken to be linear in the quality. Where several pairs of neighbours have the quality between them, the "
        f"{most} {diversity.title} counts.",
        "Which settings those are is decided on the same numbers, which flatters a cloud of many settings."
        if several
        else "",
        "Nothing is extrapolated, and no curve is drawn across a setting that is missing. Each seed has its own curve: "
        f"means and Student's {f'{CONFIDENCE:.0%}'.replace('%', ' %')} intervals are over the seeds that reach the "
        "quality, differences over those that reach it in both rows. Where these are not all, the others are left out "
        "of the mean, which is then one of a part of the seeds.",
    ]
    return " ".join(filter(None, said))


# Tables ---------------------------------------------------------------------------------------------------------------


def matched_table(results: Results, frontier: Frontier, matched: Sequence[Matched]) -> Table:
    """Diversity at one quality: a row for each cloud."""
    diversity = results.describe(frontier.settings.diversity)
    compares = any(one.difference is not None for one in matched)
    marks = _marks(matched, diversity.better or "higher", diversity.format)
    rows = []
    for one in matched:
        difference = [] if one.difference is None else [one.difference]
        cells = [Cell(difference_text(d, diversity.format), told_apart_mark(d, diversity.format)) for d in difference]
        rows.append(
            (
                Cell(one.cloud.label),
                Cell(diversity_text(one, diversity.format), marks.get(one.cloud.label, "")),
                *((cells or [Cell("")]) if compares else []),
                Cell(seeds_text(one)),
                Cell(settings_text(one)),
            )
        )
    head = ("", titled(diversity), *(["minus the baseline"] if compares else []), "seeds that reach it", "there")
    return Table(head, tuple(rows))


def diversity_text(matched: Matched, spec: str) -> str:
    """The mean over the seeds that reach the quality with its interval, or why it is not reached."""
    summary = matched.summary
    if not matched.matches:
        return f"not reached: {_NO_RUNS}"
    if not summary.n:
        return f"not reached: {_reasons(matched.matches.values())}"
    low, high = student_interval(summary)
    return f"{summary.mean:{spec}}" + ("" if math.isnan(low) else f" [{low:{spec}}, {high:{spec}}]")


def seeds_text(matched: Matched) -> str:
    """How many seeds reach the quality, and why others do not: `3 of 5 (2 worse at every setting)`."""
    reached, every = len(matched.reached), len(matched.matches)
    if not every:
        return "no seeds"
    if not reached or reached == every:
        return f"{reached} of {every}"
    others = [match for match in matched.matches.values() if match.outcome != "reached"]
    return f"{reached} of {every} (others: {_reasons(others)})"


def _reasons(matches: Any) -> str:
    counts = Counter(match.outcome for match in matches)
    return ", ".join(_WHY[outcome] + (f" ({n})" if len(counts) > 1 else "") for outcome, n in counts.most_common())


def settings_text(matched: Matched) -> str:
    """The settings between which the quality lies, with the number of seeds where these differ."""
    several = matched.settings
    said = [text + (f" ({n} of {len(matched.reached)})" if len(several) > 1 else "") for text, n in several]
    more = f"; {len(said) - _SETTINGS_SHOWN} others" if len(said) > _SETTINGS_SHOWN else ""
    return "; ".join(said[:_SETTINGS_SHOWN]) + more


def _marks(matched: Sequence[Matched], better: str, spec: str) -> dict[str, Mark]:
    """The best of those that every seed reaches, and those that are not told apart from it by the seeds."""
    whole = [one for one in matched if one.reached and len(one.reached) == len(one.matches)]
    if len({format(one.summary.mean, spec) for one in whole}) < 2:
        return {}
    top = (max if better == "higher" else min)(whole, key=lambda one: one.summary.mean)
    marks: dict[str, Mark] = {}
    for one in whole:
        if format(one.summary.mean, spec) == format(top.summary.mean, spec):
            marks[one.cloud.label] = "best"
            continue
        difference = paired_difference(one.reached, top.reached)
        if difference.has_interval and not difference.excludes_zero:
            marks[one.cloud.label] = "near"
    return marks


def front_table(results: Results, frontier: Frontier) -> Table:
    """The settings on the front of each cloud, those on the front of all clouds together marked."""
    quality, diversity = (results.describe(name) for name in _names(frontier))
    most = max((place.quality.n for cloud in frontier.clouds for place in cloud.places), default=0)
    rows = []
    for cloud in frontier.clouds:
        for place in cloud.places:
            if place.on_front:
                mark: Mark = "best" if place.on_common_front else ""
                rows.append(
                    (
                        Cell(cloud.label),
                        Cell(cloud.setting_said(place.setting)),
                        Cell(mean_text(place.quality, quality.format, most), mark),
                        Cell(mean_text(place.diversity, diversity.format, most), mark),
                    )
                )
    return Table(("", "setting", titled(quality), titled(diversity)), tuple(rows))


def marks_said(frontier: Frontier) -> str:
    """What the marks in the tables of diversities mean; empty where there can be none."""
    if max((len(cloud.points) for cloud in frontier.clouds), default=0) < 2:
        return ""
    return (
        "Marked are those alone that every seed reaches: the best, and with ° what the paired differences of the seeds "
        "do not tell apart from it."
    )


def front_said(frontier: Frontier) -> str:
    """How many settings are on the fronts, and what the marks mean."""
    counts = [
        f"{cloud.label} {sum(place.on_front for place in cloud.places)} of {len(cloud.places)}"
        + ("" if cloud.points else f" ({_NO_RUNS})")
        for cloud in frontier.clouds
    ]
    n = max((place.quality.n for cloud in frontier.clouds for place in cloud.places), default=0)
    return (
        f"Settings on the Pareto front of their curve, by the means over the seeds (n = {n} where nothing is said): "
        f"{', '.join(counts)}. Marked: on the front of all curves together."
    )


# Data -----------------------------------------------------------------------------------------------------------------


def points_csv(results: Results, frontiers: Sequence[Frontier]) -> str:
    """Every setting of every curve, with all digits: means, deviations, and whether it is on a front."""
    lines = [
        [
            frontier_title(results, frontier), cloud.label, cloud.setting_said(place.setting),
            *map(_number, (place.quality.mean, place.quality.sd, place.diversity.mean, place.diversity.sd)),
            place.quality.n, int(place.on_front), int(place.on_common_front),
        ]
        for frontier in frontiers
        for cloud in frontier.clouds
        for place in cloud.places
    ]  # fmt: skip
    return _csv(_POINTS, lines)


def matched_csv(results: Results, frontiers: Sequence[Frontier]) -> str:
    """Diversity at each quality: a line for every seed, and one for their mean with its interval."""
    lines: list[list[Any]] = []
    for frontier in frontiers:
        title = frontier_title(results, frontier)
        for target, matched in frontier.at:
            for one in matched:
                start = [title, target.said, one.cloud.label]
                for seed, match in one.matches.items():
                    at = [one.cloud.setting_said(setting) for setting in match.between] if match.between else ["", ""]
                    called, quality = "none" if seed is None else seed, _number(target.quality.get(seed, math.nan))
                    lines.append([*start, called, quality, match.outcome, _number(match.diversity), "", "", *at])
                ends = map(_number, student_interval(one.summary))
                outcome = f"{len(one.reached)} of {len(one.matches)}"
                lines.append([*start, "mean", "", outcome, _number(one.summary.mean), *ends, "", ""])
    return _csv(_MATCHED, lines)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return stream.getvalue()


def as_plain(results: Results, frontiers: Sequence[Frontier]) -> list[dict[str, Any]]:
    """Frontiers as plain values, for `results.json`."""
    return [
        {
            "title": frontier_title(results, frontier),
            "dials": list(frontier.settings.dials),
            "quality": frontier.settings.quality,
            "diversity": frontier.settings.diversity,
            "curves": [_plain_cloud(cloud) for cloud in frontier.clouds],
            "matched": [
                {"at": target.said, "curves": [_plain_matched(one) for one in matched]}
                for target, matched in frontier.at
            ],
            "remarks": list(frontier.remarks),
        }
        for frontier in frontiers
    ]


def _plain_cloud(cloud: Cloud) -> dict[str, Any]:
    return {
        "label": cloud.label,
        "labels": dict(cloud.labels),
        "points": [_plain_place(cloud, p) for p in cloud.places],
    }


def _plain_place(cloud: Cloud, place: Place) -> dict[str, Any]:
    return {
        "setting": dict(zip(cloud.dials, place.setting, strict=True)),
        "quality": place.quality.mean,
        "diversity": place.diversity.mean,
        "n": place.quality.n,
        "front": place.on_front,
        "front_of_all": place.on_common_front,
    }


def _plain_matched(one: Matched) -> dict[str, Any]:
    low, high = student_interval(one.summary)
    return {
        "label": one.cloud.label,
        "mean": one.summary.mean,
        "low": low,
        "high": high,
        "seeds": len(one.matches),
        "reached": len(one.reached),
        "by_seed": {str(seed): _plain_match(match) for seed, match in one.matches.items()},
    }


def _plain_match(match: Match) -> dict[str, Any]:
    return {
        "outcome": match.outcome,
        "diversity": match.diversity,
        "between": None if match.between is None else [list(setting) for setting in match.between],
    }
