"""What a page is made of, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Cell = str | float | None
"""A cell of a table: text, or a number that is sorted by its value; None where there is nothing."""


@dataclass(frozen=True)
class Text:
    """Paragraphs.

    Attributes:
        title: heading; empty shows none.
        paragraphs: plain text, one for each paragraph.
    """

    title: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table that is sorted by a click on the head of a column.

    Attributes:
        title: heading.
        head: titles of the columns.
        rows: rows of cells, as many as there are columns.
        shown: cells as readers see them, such as numbers with their intervals; None shows `rows`.
        hints: for each column what it means, shown beside the pointer; empty for none.
        notes: remarks below the table.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    shown: Sequence[Sequence[str]] | None = None
    hints: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Series:
    """Points of a chart that belong together.

    Attributes:
        name: name in the legend.
        x: positions; numbers, or names of bars.
        y: values.
        low: lower ends of intervals; None for none.
        high: upper ends.
        labels: text of each point beside the pointer; empty for none.
        x_low: lower ends of intervals along the horizontal axis; None for none. Lines have none.
        x_high: upper ends.
        place: place among all that are compared, which decides colour and sign; None takes that in the chart.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    labels: Sequence[str] = ()
    x_low: Sequence[float] | None = None
    x_high: Sequence[float] | None = None
    place: int | None = None


@dataclass(frozen=True)
class Chart:
    """A chart with hover.

    Attributes:
        title: heading.
        series: what is drawn.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        kind: lines with bands, points with whiskers, paths that join such points in their order, or bars.
        log_x: whether the horizontal axis is logarithmic.
    """

    title: str
    series: Sequence[Series]
    x: str
    y: str
    kind: Literal["lines", "points", "paths", "bars"] = "lines"
    log_x: bool = False


@dataclass(frozen=True)
class TextItem:
    """One question with texts side by side.

    Attributes:
        heading: what was asked.
        columns: name of each column with its texts, such as a model with its responses; each text with a short remark
            (a score), or an empty one.
    """

    heading: str
    columns: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Texts:
    """Questions that open at a click, with the texts of several models side by side.

    Attributes:
        title: heading.
        items: questions.
        notes: remarks above them.
    """

    title: str
    items: Sequence[TextItem]
    notes: Sequence[str] = field(default=())


@dataclass(frozen=True)
class TokenView:
    """How a model sees the T tokens of a text that it reads from left to right.

    Attributes:
        entropy: entropy in nats of the distribution that each token was drawn from, [T].
        support_size: number of tokens in the sparsemax support there, [T].
        tail_mass: softmax mass outside of the support, [T].
        probability: softmax probability of the token itself, [T].
        rank: 1 where the token is the most probable one, [T].
        top: places in `Tokens.pieces` of the k most probable tokens, the most probable first, [T, k].
        top_probabilities: their softmax probabilities, [T, k].
    """

    entropy: Sequence[float]
    support_size: Sequence[float]
    tail_mass: Sequence[float]
    probability: Sequence[float]
    rank: Sequence[float]
    top: Sequence[Sequence[int]]
    top_probabilities: Sequence[Sequence[float]]


@dataclass(frozen=True)
class SeenText:
    """A text of T tokens, as several models see it.

    Attributes:
        question: place in `Tokens.questions` of what it answers.
        name: what it is, such as the model that has written it.
        tokens: places of its tokens in `Tokens.pieces`, [T].
        views: how models see it, by their places in `Tokens.models`; those that cannot read it are left out.
        remark: remark beside it; empty for none.
    """

    question: int
    name: str
    tokens: Sequence[int]
    views: Mapping[int, TokenView]
    remark: str = ""


@dataclass(frozen=True)
class Tokens:
    """Texts token by token, coloured by what models think of each.

    Attributes:
        title: heading.
        questions: what was asked.
        models: names of the models.
        pieces: every token that occurs, once, as it stands in a text.
        texts: texts.
        notes: remarks above them.
    """

    title: str
    questions: Sequence[str]
    models: Sequence[str]
    pieces: Sequence[str]
    texts: Sequence[SeenText]
    notes: Sequence[str] = ()


Section = Text | Table | Chart | Texts | Tokens
"""A part of a page, with its heading."""
