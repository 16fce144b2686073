"""Curves of quality against diversity along dials, one for each choice of the other axes, from the results of a report.

Each seed has its own curve. `fronts` has the mathematics.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ts2_lightning.studies.grid.frontiers import MOST_TARGETS
from ts2_lightning.studies.report.baselines import is_baseline, match_of
from ts2_lightning.studies.report.fronts import (
    Match,
    Point,
    Setting,
    diversity_at,
    lines_of,
    pareto_front,
)
from ts2_lightning.studies.report.results import BestSettings, FrontierSettings, Results, Row, number
from ts2_lightning.studies.report.rows import label_of, named_axes
from ts2_lightning.studies.report.statistics import Difference, Summary, paired_difference, summarise
from ts2_lightning.suggestions import did_you_mean

Seed = int | None


@dataclass(frozen=True)
class Place:
    """A setting of the dials, over the seeds.

    Attributes:
        row: row of the report.
        setting: its choices of the dials.
        quality: summary over the seeds that have quality and diversity.
        diversity: the same of the diversity.
        on_front: whether no other setting of its cloud dominates its means.
        on_common_front: whether no setting of any cloud does.
    """

    row: Row
    setting: Setting
    quality: Summary
    diversity: Summary
    on_front: bool = False
    on_common_front: bool = False


@dataclass(frozen=True)
class Cloud:
    """The settings of one choice of the axes that are no dials, such as an objective.

    Attributes:
        label: name in tables and legends.
        labels: axis -> choice, of the axes that are no dials.
        dials: those of the dials that its rows have; none: a single point.
        orders: for each of these dials its choices in order.
        places: settings in the order of the dials.
        points: seed -> setting -> point.
    """

    label: str
    labels: Mapping[str, str]
    dials: tuple[str, ...]
    orders: tuple[tuple[str, ...], ...]
    places: tuple[Place, ...]
    points: Mapping[Seed, Mapping[Setting, Point]]

    @property
    def lines(self) -> list[list[Setting]]:
        """Settings along each dial, neighbours beside each other."""
        return lines_of([place.setting for place in self.places], self.orders)

    @property
    def defined(self) -> list[Place]:
        """Settings whose means are defined."""
        return [place for place in self.places if _point(place).is_defined]

    def setting_said(self, setting: Setting) -> str:
        """A setting for people: `learning_rate 5e-4, temperature 0.8`."""
        return ", ".join(f"{dial} {choice}" for dial, choice in zip(self.dials, setting, strict=True))


@dataclass(frozen=True)
class Target:
    """A quality at which diversities are compared.

    Attributes:
        said: how it is called: a number, or the row whose quality it is.
        quality: seed -> quality; a number that was named is that of every seed.
    """

    said: str
    quality: Mapping[Seed, float]


@dataclass(frozen=True)
class Matched:
    """The diversity of a cloud at a quality.

    Attributes:
        cloud: cloud.
        matches: seed -> match.
        difference: difference to the baseline's cloud, paired by the seeds that reach the quality in both; None for the
            baseline itself, and where there is none.
    """

    cloud: Cloud
    matches: Mapping[Seed, Match]
    difference: Difference | None = None

    @property
    def reached(self) -> dict[Seed, float]:
        """Seed -> diversity, of the seeds that reach the quality."""
        return {seed: match.diversity for seed, match in self.matches.items() if match.outcome == "reached"}

    @property
    def summary(self) -> Summary:
        """Over the seeds that reach the quality."""
        return summarise(list(self.reached.values()))

    @property
    def settings(self) -> list[tuple[str, int]]:
        """The settings that have the quality between them, and of how many seeds, the most frequent first."""
        said = [_between(self.cloud, match) for match in self.matches.values() if match.between]
        return Counter(said).most_common()


@dataclass(frozen=True)
class Frontier:
    """What a report says of quality against diversity along dials.

    Attributes:
        settings: what was asked for.
        clouds: one for each choice of the other axes, in the order of the rows.
        at: targets, each with what every cloud has there.
        remarks: what is missing, a line each.
    """

    settings: FrontierSettings
    clouds: tuple[Cloud, ...]
    at: tuple[tuple[Target, tuple[Matched, ...]], ...]
    remarks: tuple[str, ...]


def frontiers_of(results: Results) -> list[Frontier]:
    """All frontiers of results with complete settings."""
    return [_frontier(results, settings) for settings in results.settings.frontiers]


def _frontier(results: Results, settings: FrontierSettings) -> Frontier:
    better = _directions(results, settings)
    clouds = _with_fronts(clouds_of(results, settings), *better)
    at = []
    for target in targets_of(results, settings):
        matched = [_matched(cloud, target, *better) for cloud in clouds]
        at.append((target, _against_baseline(results, matched)))
    return Frontier(settings, tuple(clouds), tuple(at), tuple(_remarks(clouds)))


def _directions(results: Results, settings: FrontierSettings) -> tuple[str, str]:
    """Which way quality and diversity are better, by their descriptions."""
    quality, diversity = results.describe(settings.quality).better, results.describe(settings.diversity).better
    assert quality, "complete_settings leaves out frontiers of values without a direction"
    assert diversity, "the same"
    return quality, diversity


# Clouds ---------------------------------------------------------------------------------------------------------------


def rows_of(results: Results, settings: FrontierSettings | BestSettings) -> list[Row]:
    """The rows of trainings that are meant."""
    where = settings.where.items()
    return [row for row in results.trained if all(row.labels.get(axis) in choices for axis, choices in where)]


def label_without(results: Results, labels: Mapping[str, str], where: Mapping[str, Sequence[str]]) -> str:
    """The name of some choices, without those that all rows have that are meant."""
    told = {axis: choice for axis, choice in labels.items() if len(where.get(axis, ())) != 1}
    return label_of(told, named_axes(results.axes))


def clouds_of(results: Results, settings: FrontierSettings) -> list[Cloud]:
    """Rows by their choices of the axes that are no dials. Those that lack a dial are a cloud apart."""
    groups: dict[tuple[tuple[str, ...], frozenset[tuple[str, str]]], list[Row]] = {}
    for row in rows_of(results, settings):
        dials = tuple(dial for dial in settings.dials if dial in row.labels)
        others = frozenset((axis, choice) for axis, choice in row.labels.items() if axis not in settings.dials)
        groups.setdefault((dials, others), []).append(row)
    several = Counter(others for _, others in groups)
    clouds = []
    for (dials, others), rows in groups.items():
        lacking = [dial for dial in settings.dials if dial not in dials] if several[others] > 1 else []
        clouds.append(_cloud(results, settings, dials, rows, lacking))
    return clouds


def _cloud(
    results: Results, settings: FrontierSettings, dials: tuple[str, ...], rows: Sequence[Row], lacking: Sequence[str]
) -> Cloud:
    first = rows[0].labels
    labels = {axis: choice for axis, choice in first.items() if axis not in settings.dials}
    called = label_without(results, labels, settings.where)
    label = ", ".join(filter(None, [called, *(f"without {dial}" for dial in lacking)])) or "all rows"
    orders = tuple(order_of(results.axes[dial]) for dial in dials)
    by_setting = {tuple(row.labels[dial] for dial in dials): row for row in rows}
    ordered = sorted(by_setting, key=lambda setting: [order.index(c) for order, c in zip(orders, setting, strict=True)])
    points: dict[Seed, dict[Setting, Point]] = {run.seed: {} for row in rows for run in row.runs}
    places = []
    for setting in ordered:
        row = by_setting[setting]
        quality, diversity = results.values(row, settings.quality), results.values(row, settings.diversity)
        both = {seed: Point(quality[seed], diversity[seed]) for seed in quality if seed in diversity}
        for seed, point in both.items():
            points[seed][setting] = point
        qualities, diversities = ([point[i] for point in both.values()] for i in (0, 1))
        places.append(Place(row, setting, summarise(qualities), summarise(diversities)))
    seeds = sorted(points, key=lambda seed: (seed is None, seed or 0))
    return Cloud(label, labels, dials, orders, tuple(places), {seed: points[seed] for seed in seeds})


def order_of(choices: Sequence[str]) -> tuple[str, ...]:
    """The order of a dial's choices: by number if all are numbers, else as the axis has them.

    Example:
        >>> order_of(["5e-4", "1e-3", "2.5e-4"]), order_of(["two epochs", "1"])
        (('2.5e-4', '5e-4', '1e-3'), ('two epochs', '1'))
    """
    numbers = {choice: number(choice) for choice in choices}
    if any(value is None for value in numbers.values()):
        return tuple(choices)
    return tuple(sorted(choices, key=lambda choice: float(choice)))


def _point(place: Place) -> Point:
    return Point(place.quality.mean, place.diversity.mean)


def _with_fronts(clouds: Sequence[Cloud], quality: str, diversity: str) -> list[Cloud]:
    common = pareto_front([_point(place) for cloud in clouds for place in cloud.places], quality, diversity)
    marked, start = [], 0
    for cloud in clouds:
        own = pareto_front([_point(place) for place in cloud.places], quality, diversity)
        both = zip(cloud.places, own, common[start : start + len(own)], strict=True)
        places = tuple(Place(p.row, p.setting, p.quality, p.diversity, on, of_all) for p, on, of_all in both)
        marked.append(Cloud(cloud.label, cloud.labels, cloud.dials, cloud.orders, places, cloud.points))
        start += len(own)
    return marked


def why_no_frontier(results: Results, settings: FrontierSettings) -> str:
    """Why there are no curves; empty if there are."""
    for name in (settings.quality, settings.diversity):
        if name not in results.names:
            return f"{name}: not measured{did_you_mean(name, results.names)}"
        if results.describe(name).better is None:
            return f"{name}: neither direction is better, so that it has no front"
    for dial in settings.dials:
        if dial not in results.axes:
            near = did_you_mean(dial, results.axes) or f"; there are {', '.join(results.axes)}"
            return f"no axis {dial!r}{near}"
    places = [place for cloud in clouds_of(results, settings) for place in cloud.places if place.quality.n]
    for dial in settings.dials:
        measured = {place.row.labels[dial] for place in places if dial in place.row.labels}
        if len(measured) < 2:
            return f"a dial needs at least two choices that are measured, {dial} has {len(measured)}"
    return ""


def why_no_target(results: Results, settings: FrontierSettings, at: float | Mapping[str, str] | str) -> str:
    """Why there is no such quality to compare at; empty if there is."""
    if isinstance(at, str):
        count = sum(is_baseline(results, row) for row in rows_of(results, settings))
        if 0 < count <= MOST_TARGETS:
            return ""
        return f"the baseline has {count} of its rows; give qualities, such as --at 0.95"
    if isinstance(at, Mapping):
        count = len(row_meant(results, settings, at))
        called = ", ".join(f"{axis} {choice}" for axis, choice in at.items())
        return "" if count == 1 else f"no quality of {called}: {count or 'no'} row{'s' if count else ''} of it"
    return ""


# Matched quality ------------------------------------------------------------------------------------------------------


def targets_of(results: Results, settings: FrontierSettings) -> list[Target]:
    """The qualities at which diversities are compared."""
    targets = []
    spec = results.describe(settings.quality).format
    for at in settings.at:
        if isinstance(at, str):
            rows = [row for row in rows_of(results, settings) if is_baseline(results, row)]
            targets += [_quality_of(results, row, settings.quality) for row in rows]
        elif isinstance(at, Mapping):
            meant = row_meant(results, settings, at)
            targets += [_quality_of(results, row, settings.quality) for row in meant]
        else:
            seeds = {run.seed for row in rows_of(results, settings) for run in row.runs}
            text = format(at, spec)
            targets.append(Target(text if float(text) == at else f"{at:g}", dict.fromkeys(seeds, at)))
    return targets


def row_meant(results: Results, settings: FrontierSettings, labels: Mapping[str, str]) -> list[Row]:
    """The rows of a frontier with some choices; of several the one without further axes, where there is one."""
    fitting = [row for row in rows_of(results, settings) if labels.items() <= row.labels.items()]
    return [row for row in fitting if row.labels == labels] or fitting


def _quality_of(results: Results, row: Row, quality: str) -> Target:
    values = results.values(row, quality)
    mean = summarise(list(values.values())).mean
    said = f" ({mean:{results.describe(quality).format}} on average)" if math.isfinite(mean) else ""
    return Target(f"that of {row.label}{said}", values)


def _matched(cloud: Cloud, target: Target, quality: str, diversity: str) -> Matched:
    lines = cloud.lines
    matches = {
        seed: diversity_at(target.quality[seed], points, lines, quality, diversity)
        if math.isfinite(target.quality.get(seed, math.nan))
        else Match("none")
        for seed, points in cloud.points.items()
    }
    return Matched(cloud, matches)


def _against_baseline(results: Results, matched: Sequence[Matched]) -> tuple[Matched, ...]:
    """The same with differences to the cloud of the baseline."""
    wanted = results.settings.matched
    if not wanted:
        labels = [row.labels for row in results.trained if row.label == results.settings.baseline]
        wanted = labels[0] if labels else {}
    axes = {axis for one in matched for axis in one.cloud.labels}
    wanted = {axis: choice for axis, choice in wanted.items() if axis in axes}
    if not wanted:
        return tuple(matched)
    by_label = {one.cloud.label: one for one in matched}
    clouds = [Row(one.cloud.label, one.cloud.labels, ()) for one in matched]
    compared = []
    for one in matched:
        base = match_of(one.cloud.labels, wanted, clouds)
        if base is None or base.label == one.cloud.label:
            compared.append(one)
            continue
        difference = paired_difference(one.reached, by_label[base.label].reached)
        compared.append(Matched(one.cloud, one.matches, difference))
    return tuple(compared)


def _between(cloud: Cloud, match: Match) -> str:
    """The settings between which a match lies, for people: `learning_rate 2.5e-4, temperature 0.8 to 1`."""
    assert match.between
    first, second = match.between
    parts = zip(cloud.dials, first, second, strict=True)
    said = [f"{dial} {one}" if one == other else f"{dial} {one} to {other}" for dial, one, other in parts]
    return ", ".join(said) or "its only setting"


# Remarks --------------------------------------------------------------------------------------------------------------


def _remarks(clouds: Sequence[Cloud]) -> list[str]:
    """What is missing of the curves, a line each."""
    remarks = []
    seeds = {seed for cloud in clouds for seed in cloud.points if seed is not None}
    for cloud in clouds:
        if not cloud.dials:
            remarks.append(f"{cloud.label}: no dial, so that it is a point and no curve.")
        if absent := sorted(seeds - cloud.points.keys()):
            remarks.append(f"{cloud.label}: no run of seed {', '.join(map(str, absent))}.")
        for seed, points in cloud.points.items():
            lacking = [p.setting for p in cloud.places if not points.get(p.setting, Point(math.nan, 0.0)).is_defined]
            if lacking:
                first = cloud.setting_said(lacking[0])
                more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
                of_seed = "without a seed" if seed is None else f"of seed {seed}"
                cut = " or not defined; its curve is cut there." if cloud.dials else " or not defined."
                remarks.append(f"{cloud.label}: the run {of_seed} is not measured at {first}{more},{cut}")
    return remarks
