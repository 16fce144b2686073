"""Responses that are there, whoever has made them: they are scored without the model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ts2_lightning.evaluation.protocols.asking import part_name
from ts2_lightning.evaluation.protocols.items import Item, Part, read_item
from ts2_lightning.generation.requests import Response
from ts2_lightning.generation.response_files import DIRECTORY, Stored, read_store
from ts2_lightning.runs.stamps import digest
from ts2_lightning.types import UserError

_SAMPLING = ("temperature", "top_k", "top_p")
Answers = list[tuple[Item, list[Response]]]


def stores_of(place: Path) -> list[Path]:
    """The directories of responses at a place: one such, or those in its `responses`.

    Args:
        place: a directory `NAME-DIGEST` with responses, or one with `responses`, or `responses` itself.
    """
    if any(place.glob("part-*.jsonl")):
        return [place]
    inside = place if place.name == DIRECTORY else place / DIRECTORY
    return sorted(path for path in inside.glob("*") if any(path.glob("part-*.jsonl")))


def stored_answers(place: Path, protocol: str, parts: Iterable[Part], n: int | None) -> list[tuple[Part, Answers]]:
    """The parts of a protocol that have responses at a place; others are left out with a warning.

    Args:
        place: see `stores_of`.
        protocol: name of the protocol.
        parts: its parts.
        n: responses to each question that is sampled; None takes as many as most have. Questions with fewer are left
            out with a warning.

    Raises:
        UserError: there are none of any part, or it is not clear which ones are meant.
    """
    stores = {path: read_store(path) for path in stores_of(place)}
    answers = []
    for part in parts:
        store = _of_part(place, stores, protocol, part)
        if store is None:
            rank_zero_warn(f"{place}: no responses of {part_name(protocol, part)}; this part is left out")
        else:
            answers.append(_with_items(store, part, n, f"{place}: {part_name(protocol, part)}"))
    if not answers:
        names = sorted({_name(store) for store in stores.values()})
        raise UserError(f"{place}: no responses of {protocol}; there is {', '.join(names) or 'nothing'}")
    return answers


def _of_part(place: Path, stores: dict[Path, Stored], protocol: str, part: Part) -> Stored | None:
    """The responses of a part: those with its settings, or the only ones under its name."""
    named = {path: store for path, store in stores.items() if _name(store) == part_name(protocol, part)}
    wanted = {name: asdict(part.sampling)[name] for name in _SAMPLING}
    alike = {
        path: store
        for path, store in named.items()
        if {name: _decoder(store).get(name) for name in _SAMPLING} == wanted
    }
    chosen = alike or ({} if part.asked_as else named)
    if len(chosen) > 1:
        names = ", ".join(path.name for path in chosen)
        raise UserError(f"{place}: several responses of {part_name(protocol, part)} ({names}); name one of them")
    return next(iter(chosen.values()), None)


def _name(store: Stored) -> str:
    return str(store.head.get("name", ""))


def _decoder(store: Stored) -> Mapping[str, Any]:
    """The decoder that the first line names; empty if somebody else's names none."""
    settings = store.head.get("settings")
    decoder = settings.get("decoder") if isinstance(settings, Mapping) else None
    return decoder if isinstance(decoder, Mapping) else {}


def _with_items(store: Stored, part: Part, n: int | None, said: str) -> tuple[Part, Answers]:
    items = {}
    for name, plain in store.items.items():
        try:
            items[name] = read_item(name, plain)
        except ValueError as error:
            raise UserError(
                f"{said}: item {name} in items.jsonl is no question of a protocol ({error}); responses of `generate` "
                "have no right answers, so sample them with `evaluate`"
            ) from error
    by_prompt: dict[str, dict[int, Response]] = {}
    for line in store.lines:  # questions with the same prompt share their responses, which have one question's id
        if line.item in items:
            item = items[line.item]
            by_prompt.setdefault(_prompt(item), {})[line.index] = line.response
    counts = {prompt: _whole(responses) for prompt, responses in by_prompt.items()}
    if not counts:
        raise UserError(f"{said}: the responses lack items.jsonl, which says what was asked")
    asked = None if part.sampling.is_greedy else n
    n = asked or Counter(counts.values()).most_common(1)[0][0]
    answers = [
        (item, [by_prompt[_prompt(item)][index] for index in range(n)])
        for item in items.values()
        if counts.get(_prompt(item), 0) >= n
    ]
    if not answers:
        raise UserError(f"{said}: no question has {n} responses; the most are {max(counts.values())}")
    if len(answers) < len(items):
        rank_zero_warn(f"{said}: {len(items) - len(answers)} of {len(items)} questions have less than {n} responses")
    return replace(part, sampling=replace(part.sampling, n=n)), answers


def _prompt(item: Item) -> str:
    """What questions with the same prompt have in common."""
    return digest([list(map(dict, item.history)), item.question, item.opening])


def _whole(responses: dict[int, Response]) -> int:
    """How many there are without a gap."""
    return next(index for index in range(len(responses) + 1) if index not in responses)
