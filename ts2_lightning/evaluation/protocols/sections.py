"""What a page shows of protocols: values, curves, and responses side by side."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols.asking import part_name
from ts2_lightning.evaluation.protocols.base import Protocol
from ts2_lightning.evaluation.protocols.items import Item, Part, Scored, fingerprint
from ts2_lightning.evaluation.protocols.pictures import planes_of
from ts2_lightning.evaluation.protocols.scores import ScoreFile
from ts2_lightning.evaluation.protocols.stored import Answers
from ts2_lightning.evaluation.protocols.tables import (
    Cell,
    Evaluated,
    columns_of,
    curves_of,
    parts_of,
)
from ts2_lightning.evaluation.token_explorer import Explorer
from ts2_lightning.generation.requests import Request, Response
from ts2_lightning.generation.store import ResponseStore
from ts2_lightning.pages import Chart, Section, Series, Table, TextItem, Texts

QUESTIONS = 10
"""Questions of each part whose responses are shown."""

RESPONSES = 3
"""Responses of a model to a question that are shown."""

_ANSWER = 60
"""Characters of an answer beside its response."""

_CURVES = {
    "pass": ("right in one of k responses", "share of questions"),
    "majority": ("vote of k responses", "share of questions"),
    "win_rate": ("best of k responses", "win rate, %"),
    "lc_win_rate": ("best of k responses, at equal length", "win rate, %"),
}


def value_sections(evaluated: Sequence[Evaluated]) -> list[Section]:
    """Tables of all parts with intervals and differences, and what their pictures show as charts."""
    sections: list[Section] = []
    for part in parts_of(evaluated):
        columns = columns_of(part, evaluated)
        models = [(number, model) for number, model in enumerate(evaluated) if part.cells[number]]
        sections.append(
            Table(
                part.title,
                ["model", *(column.title for column in columns)],
                [[model.title, *(column.numbers[number] for column in columns)] for number, model in models],
                [[model.title, *(column.texts[number] for column in columns)] for number, model in models],
                ["", *(column.meaning for column in columns)] if any(column.meaning for column in columns) else (),
            )
        )
        sections += _curves(part.title, [curves_of(part, model) for model in evaluated], evaluated)
    return [*sections, *_planes(evaluated)]


def _curves(
    title: str, drawn: Sequence[dict[str, dict[int, tuple[float, float, float]]]], evaluated: Sequence[Evaluated]
) -> list[Section]:
    sections: list[Section] = []
    for name, (said, y) in _CURVES.items():
        series = [
            _series(model.title, curves[name], place)
            for place, (model, curves) in enumerate(zip(evaluated, drawn, strict=True))
            if len(curves.get(name, ())) > 1
        ]
        chance = next((curves["chance"] for curves in drawn if "chance" in curves), None) if name == "pass" else None
        if series:
            series += [_series("k guesses", chance, len(evaluated))] if chance else []
            sections.append(Chart(f"{title}: {said}", series, "responses k (logarithmic axis)", y, log_x=True))
    return sections


def _series(name: str, curve: dict[int, tuple[float, float, float]], place: int) -> Series:
    means, lows, highs = (list(values) for values in zip(*curve.values(), strict=True))
    return Series(name, list(curve), means, lows, highs, place=place)


def _planes(evaluated: Sequence[Evaluated]) -> list[Section]:
    sections: list[Section] = []
    for plane in planes_of(evaluated):
        series = [
            Series(model.title, [x.mean], [y.mean], *_ends(y), (), *_ends(x), place)
            for place, (model, point) in enumerate(zip(evaluated, plane.points, strict=True))
            if point is not None
            for x, y in [point]
        ]
        if series:
            sections.append(Chart(f"{plane.title}: quality against diversity", series, plane.x, "quality", "points"))
    return sections


def _ends(cell: Cell) -> tuple[list[float] | None, list[float] | None]:
    return (None, None) if cell.low is None or cell.high is None else ([cell.low], [cell.high])


# Responses side by side -----------------------------------------------------------------------------------------------


def text_sections(models: Sequence[Model], protocols: Sequence[Protocol]) -> list[Section]:
    """The first questions of each part with what the models responded, and what it is worth; nothing is made for it.

    Protocols whose texts stay in their files are left out.
    """
    sections: list[Section] = []
    for protocol in protocols:
        if protocol.texts_stay:
            continue
        parts: dict[str, dict[tuple[str, str], TextItem]] = {}
        for model in models:
            for part, answers in _there(model, protocol):
                scores = ScoreFile(model.out, part_name(protocol.name, part), protocol.scoring_settings())
                items = parts.setdefault(part.label, {})
                for item, responses in answers[:QUESTIONS]:
                    key = item.id, fingerprint(item)
                    before = items.get(key) or TextItem(asked_text(item), [])
                    texts = [(one.text, worth(one, scores.get(item, one.key))) for one in responses[:RESPONSES]]
                    items[key] = TextItem(before.heading, [*before.columns, (model.title, texts)])
        for label, items in parts.items():
            title = " ".join(filter(None, [protocol.name, label]))
            shown = list(items.values())[:QUESTIONS]
            note = f"The first {len(shown):,} questions, with at most {RESPONSES} responses of each model."
            sections.append(Texts(f"{title}: responses", shown, [note]))
    return sections


def _there(model: Model, protocol: Protocol) -> Iterator[tuple[Part, Answers]]:
    """The parts whose first responses are on disk."""
    limit = QUESTIONS if protocol.limit is None else min(protocol.limit, QUESTIONS)
    first = replace(protocol, limit=limit)
    if model.responses is not None:
        yield from first.responses(model, model.out)
        return
    for part in first.parts():
        asked = first.asked(model, part)
        store = ResponseStore(model.out, asked.name, asked.settings)
        if not store.missing(asked.wanted):
            there = store.responses()
            yield part, [(item, [there[one.key] for one in asked.wanted[item.id]]) for item in asked.items]


def asked_text(item: Item) -> str:
    """What a model is asked, with the turns before, and how its answer begins."""
    turns = [f"{turn['role']}: {turn['content']}" for turn in item.history]
    return "\n\n".join([*turns, item.question + (f"\n\n{item.opening}" if item.opening else "")])


def worth(response: Response, scored: Scored | None) -> str:
    """What a response is worth, the answer that was read in it, and what is noted of it, in a line.

    Args:
        response: the response.
        scored: its score; None if it has none.
    """
    cut = "cut off" if response.finish == "length" else ""
    if scored is None:
        return cut
    score = f"score {scored.score:.3g}"
    if scored.answer is not None and _is_score(scored.note, scored):  # of a reward, which would be there three times
        return " · ".join(filter(None, [score, cut]))
    answer = "no answer read" if scored.answer is None else f"answer {_shortened(scored.answer)}"
    return " · ".join(filter(None, [score, answer, cut, _shortened(scored.note)]))


def _is_score(note: str, scored: Scored) -> bool:
    """Whether a note says nothing but the score, as that of a classifier does."""
    try:
        [number] = json.loads(note)
        return math.isclose(number, scored.score, rel_tol=1e-4)
    except (ValueError, TypeError, RecursionError):
        return False


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _ANSWER else f"{line[:_ANSWER]}…"


# Tokens ---------------------------------------------------------------------------------------------------------------


class ProtocolExplorer:
    """The tokens of what models respond to the first questions of protocols.

    Args:
        protocols: protocols; those whose texts stay in their files are left out.
        count: number of questions of each.
        say: takes lines on models that are left out.
    """

    def __init__(self, protocols: Sequence[Protocol], count: int, say: Callable[[str], None]) -> None:
        self._protocols = [protocol for protocol in protocols if not protocol.texts_stay] if count else []
        self._count, self._say = count, say
        self._explorer: Explorer | None = None

    def listen(self, model: Model, loads: bool) -> None:
        """Hears a model, while it is loaded.

        Args:
            model: the model.
            loads: whether it may be loaded for this alone; else it is heard if it is loaded, or was heard before.
        """
        if not self._protocols:
            return
        if not Explorer.can_see(model):
            if loads:
                self._say(f"tokens: {model.name} is not here to be looked into; left out")
            return
        asked = [one for protocol in self._protocols for one in self._first(model, protocol)]
        requests = [request for _, request in asked]
        if loads or "network" in vars(model) or Explorer.has_heard(model, requests):
            self._explorer = self._explorer or Explorer([text for text, _ in asked])
            self._explorer.listen(model, requests)

    def _first(self, model: Model, protocol: Protocol) -> list[tuple[str, Request]]:
        """The first questions of the first part, each with the request for its first response."""
        limit = self._count if protocol.limit is None else min(protocol.limit, self._count)
        first = replace(protocol, limit=limit)
        asked = first.asked(model, first.parts()[0])
        return [
            (f"{protocol.name}: {asked_text(item)}", asked.wanted[item.id][0]) for item in asked.items[: self._count]
        ]

    def sections(self) -> list[Section]:
        """The section of the page; none if nothing was heard. Models are loaded once more, one after the other."""
        if self._explorer is None:
            return []
        return [self._explorer.section("Tokens", self._say, forget=True)]
