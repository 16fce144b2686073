"""Compared models as parts of a page: table, charts, and the questions at which they differ most."""

from collections.abc import Sequence

from ts2_lightning.evaluation.comparison.contrasts import Contrast, Texts
from ts2_lightning.evaluation.comparison.pairs import Pair
from ts2_lightning.evaluation.comparison.tables import HEAD, HINTS, lines_of, p_text, titled
from ts2_lightning.evaluation.comparison.ways import Entrant
from ts2_lightning.evaluation.protocols.sections import asked_text, worth
from ts2_lightning.pages import Chart, Section, Series, Table, TextItem
from ts2_lightning.pages import Texts as TextsSection

_RESPONSES = 8
"""Responses of a model to a question that are shown, at most."""


def sections_of(
    pairs: Sequence[Pair], entrants: Sequence[Entrant], contrasts: Sequence[Contrast], notes: Sequence[str]
) -> list[Section]:
    """What a page shows.

    Args:
        pairs: pairs from `compare_all`.
        entrants: the models.
        contrasts: questions from `contrasts_of`.
        notes: remarks below the table.
    """
    lines = lines_of(pairs, entrants)
    table = Table(
        "Differences",
        ["value", *HEAD[1:]],
        [line.cells for line in lines],
        [line.shown for line in lines],
        HINTS,
        notes,
    )
    return [table, *_charts(pairs, entrants), *_texts(contrasts, entrants)]


def _charts(pairs: Sequence[Pair], entrants: Sequence[Entrant]) -> list[Chart]:
    """Differences with whiskers, a chart for all values of a protocol that are printed alike, and so of one scale."""
    by_scale: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        if pair.difference is not None:
            by_scale.setdefault((pair.way.title, pair.value.format), []).append(pair)
    charts = list[tuple[str, list[Series]]]()
    for (protocol, _), of_scale in by_scale.items():
        series = []
        for first, second in dict.fromkeys((pair.first, pair.second) for pair in of_scale):
            same = [pair for pair in of_scale if (pair.first, pair.second) == (first, second)]
            intervals = [pair.difference.interval for pair in same if pair.difference is not None]
            series.append(
                Series(
                    f"{entrants[second].title} minus {entrants[first].title}",
                    [titled(pair).removeprefix(f"{protocol} ") for pair in same],
                    [interval.mean for interval in intervals],
                    [_end(interval.low, interval.mean) for interval in intervals],
                    [_end(interval.high, interval.mean) for interval in intervals],
                    [f"p {p_text(pair.p)}, by Holm {p_text(pair.corrected)}" for pair in same],
                )
            )
        charts.append((protocol, series))
    protocols = [protocol for protocol, _ in charts]
    return [
        Chart(
            f"{protocol}: differences" + (f", {_first(series)}" if protocols.count(protocol) > 1 else ""),
            series,
            "",
            "difference",
            "points",
        )
        for protocol, series in charts
    ]


def _first(series: Sequence[Series]) -> str:
    """What tells a chart from others of its protocol: its first two values."""
    names = list(dict.fromkeys(str(name) for one in series for name in one.x))
    return ", ".join(names if len(names) < 3 else [*names[:2], "..."])


def _end(end: float, mean: float) -> float:
    return mean if end != end else end  # of one question there is no interval


def _texts(contrasts: Sequence[Contrast], entrants: Sequence[Entrant]) -> list[TextsSection]:
    """For each part the questions at which models differ most."""
    by_part: dict[tuple[str, str], list[Contrast]] = {}
    for contrast in contrasts:
        if contrast.item is not None:
            by_part.setdefault((contrast.pair.way.title, contrast.pair.part), []).append(contrast)
    return [
        TextsSection(
            f"{' '.join(filter(None, place))}: where the models differ most",
            [_item(contrast, entrants) for contrast in of_part],
            [
                f"By {titled(of_part[0].pair)}, the largest difference of any two models first. Behind each text is "
                "what it is worth, and the answer that was read in it."
            ],
        )
        for place, of_part in by_part.items()
    ]


def _item(contrast: Contrast, entrants: Sequence[Entrant]) -> TextItem:
    item, form = contrast.item, contrast.pair.value.format
    assert item is not None
    right = [f"Right: {item.gold}"] if isinstance(item.gold, str | int | float) else []
    second, first = entrants[contrast.pair.second].title, entrants[contrast.pair.first].title
    differs = f"{contrast.id}: {second} minus {first} {contrast.difference:+{form}}"
    heading = "\n".join([differs, asked_text(item), *right])
    columns = [
        (_column(entrant.title, texts, form), [(response.text, worth(response, scored)) for response, scored in shown])
        for entrant, texts in zip(entrants, contrast.texts, strict=True)
        for shown in [texts.responses[:_RESPONSES]]
    ]
    return TextItem(heading, columns)


def _column(title: str, texts: Texts, form: str) -> str:
    """Model, its value, and how many of its responses are shown."""
    value = "not asked" if texts.value is None else f"{texts.value:{form}}"
    count = len(texts.responses)
    return f"{title}: {value}" + (f" (the first {_RESPONSES} of {count} responses)" if count > _RESPONSES else "")
