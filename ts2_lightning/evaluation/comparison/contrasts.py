"""The questions at which models differ most, with what each of them has responded."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ts2_lightning.evaluation.comparison.pairs import Pair
from ts2_lightning.evaluation.comparison.ways import Entrant
from ts2_lightning.evaluation.measure import ASKED, PER_ITEM
from ts2_lightning.evaluation.protocols.asking import part_name
from ts2_lightning.evaluation.protocols.base import PAPER, Protocol
from ts2_lightning.evaluation.protocols.items import Item, Part, Scored
from ts2_lightning.evaluation.protocols.scores import ScoreFile
from ts2_lightning.evaluation.protocols.stored import Answers, stored_answers, stores_of
from ts2_lightning.evaluation.registry import check_spec, registered_measures
from ts2_lightning.evaluation.results import Result
from ts2_lightning.generation.requests import Response
from ts2_lightning.types import UserError

_DECODER = ("temperature", "top_k", "top_p")


class Texts(NamedTuple):
    """What a model has responded to a question.

    Attributes:
        value: its value at the question; None if it was not asked.
        responses: texts in the order of the samples, each with what it is worth; empty where they are not on disk.
    """

    value: float | None
    responses: Sequence[tuple[Response, Scored | None]]


@dataclass(frozen=True)
class Contrast:
    """A question at which models differ.

    Attributes:
        pair: the pair of models that differ, and the value.
        id: id of the question.
        item: the question; None where no model's responses are on disk.
        texts: what each model has responded, in the order of the models.
    """

    pair: Pair
    id: str
    item: Item | None
    texts: Sequence[Texts]

    @property
    def difference(self) -> float:
        """Second minus first of the pair, at this question."""
        return self.pair.common.after[self.id] - self.pair.common.before[self.id]


def protocol_of(result: Result, part: str, classes: Mapping[str, str]) -> Protocol | None:
    """The protocol of a result with its settings.

    Args:
        result: what a model scored.
        part: label of a part that the protocol has with these settings.
        classes: `FILE.CLASS` of users' protocols by their names.

    Returns:
        The protocol; None if its class is not at hand, or has other settings or parts by now.
    """
    name = classes.get(result.name, result.name)
    whole = {key: value for key, value in result.settings.items() if value is not None}
    try:
        [usual] = check_spec({name: {"variant": whole.get("variant", PAPER)}}).measures
    except UserError:
        return None
    # What a user has left out is in the file as what it stands for, and may mean more where it is left out.
    defaults = usual.plain_settings()
    left_out = {key: value for key, value in whole.items() if key == "variant" or value != defaults.get(key)}
    for settings in (left_out, whole):
        try:
            [measure] = check_spec({name: settings}).measures
        except UserError:
            continue
        if isinstance(measure, Protocol) and part in [one.label for one in measure.parts()]:
            return measure
    return None


def asks_questions(name: str) -> bool:
    """Whether what has a name is a protocol, or nothing registered, as a user's own; not so of `diversity`."""
    registered = registered_measures().get(name)
    return registered is None or issubclass(registered, Protocol)


def contrasts_of(
    pairs: Sequence[Pair], entrants: Sequence[Entrant], count: int, classes: Mapping[str, str]
) -> tuple[list[Contrast], list[str]]:
    """The questions of each part at which any pair of models differs most, with their texts.

    Args:
        pairs: pairs from `compare_all`; of each part the first value counts.
        entrants: the models.
        count: number of questions of each part, at most. Those without a difference are none.
        classes: `FILE.CLASS` of users' protocols by their names.

    Returns:
        The questions, those that differ most first; and lines on texts that are not shown. Those of a protocol whose
        texts stay in their files are left out, questions included.
    """
    contrasts: list[Contrast] = []
    notes: dict[str, None] = {}
    by_part: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        of_part = by_part.setdefault((pair.way.title, pair.part), [])
        if not of_part or of_part[0].name == pair.name:
            of_part.append(pair)
    for of_part in by_part.values() if count else ():
        way, part = of_part[0].way, of_part[0].part
        protocols = [None if result is None else protocol_of(result, part, classes) for result in way.results]
        protocol = next(filter(None, protocols), None)
        if protocol is None and not asks_questions(way.protocol):
            continue
        if protocol is None:
            notes[f"{way.title}: no texts are shown, since its class is not at hand; name it with --protocol"] = None
            continue
        if getattr(protocol, "texts_stay", False):
            notes[f"{way.title}: its texts stay in their files, DIR/responses"] = None
            continue
        chosen = _most_different(of_part, count)
        readers = [_Reader(entrant, one, part) for entrant, one in zip(entrants, protocols, strict=True)]
        for pair, id in chosen:
            texts = [_texts(reader, way.results[number], pair, id) for number, reader in enumerate(readers)]
            item = next((reader.item(id) for reader in readers if reader.item(id) is not None), None)
            contrasts.append(Contrast(pair, id, item, texts))
        notes |= dict.fromkeys(reader.note for reader in readers if chosen and reader.note)
    return contrasts, list(notes)


def _most_different(pairs: Sequence[Pair], count: int) -> list[tuple[Pair, str]]:
    """Pair and question, each question once; of equal differences the earlier question."""
    by_question: dict[str, tuple[float, Pair]] = {}
    for pair in pairs:
        for id, before in pair.common.before.items():
            size = round(abs(pair.common.after[id] - before), 6)
            if size and (id not in by_question or size > by_question[id][0]):
                by_question[id] = (size, pair)
    ranked = sorted(by_question.items(), key=lambda one: -one[1][0])
    return [(pair, id) for id, (_, pair) in ranked[:count]]


def _texts(reader: "_Reader", result: Result | None, pair: Pair, id: str) -> Texts:
    """What a model has responded, if it was asked the question of the pair."""
    first = pair.way.results[pair.first]
    asked = [None if one is None else one.documents[ASKED].get(pair.part, {}).get(id) for one in (result, first)]
    if result is None or asked[0] is None or asked[0] != asked[1]:
        return Texts(None, ())
    whole = "/".join(filter(None, [pair.part, pair.name]))
    return Texts(result.documents[PER_ITEM].get(whole, {}).get(id), reader.responses(id))


# What is on disk ------------------------------------------------------------------------------------------------


class _Reader:
    """Responses and scores of a model in one part of a protocol.

    Args:
        entrant: the model.
        protocol: the protocol with its settings; None if the model was not measured.
        label: label of the part.

    Attributes:
        note: empty, or why there is nothing.
    """

    def __init__(self, entrant: Entrant, protocol: Protocol | None, label: str) -> None:
        self.note = ""
        self._answers: dict[str, tuple[Item, Sequence[Response]]] = {}
        self._scores: ScoreFile | None = None
        part = None if protocol is None else next((one for one in protocol.parts() if one.label == label), None)
        if protocol is None or part is None:
            return
        try:
            answers = _stored(entrant.directory, protocol, part)
            self._answers = {item.id: (item, responses) for item, responses in answers}
            self._scores = _scores(entrant.directory, protocol, part)
        except UserError as error:
            self.note = f"{entrant.title}: no texts of {part_name(protocol.name, part)} are shown ({error})"

    def item(self, id: str) -> Item | None:
        """The question; None if there are no responses to it."""
        return self._answers[id][0] if id in self._answers else None

    def responses(self, id: str) -> list[tuple[Response, Scored | None]]:
        """Responses with their scores, where there are any."""
        if id not in self._answers:
            return []
        item, responses = self._answers[id]
        return [(one, None if self._scores is None else self._scores.get(item, one.key)) for one in responses]


def _stored(directory: Path, protocol: Protocol, part: Part) -> Answers:
    """The responses that were sampled with the settings of a part.

    Raises:
        UserError: there are none, or several of them.
    """
    name, sampling = part_name(protocol.name, part), part.sampling
    wanted = {"seed": protocol.seed, "max_new_tokens": sampling.max_new_tokens}
    decoder = {key: getattr(sampling, key) for key in _DECODER}
    named = {store: head for store in stores_of(directory) if (head := _head(store)).get("name") == name}
    alike = [store for store, head in named.items() if _is_of(head.get("settings"), wanted, decoder)]
    stores = alike or [*named]
    if not stores:
        raise UserError(f"{directory} has no responses of it")
    newest = max(stores, key=lambda store: max(file.stat().st_mtime_ns for file in store.glob("part-*.jsonl")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of questions with fewer responses `evaluate` has told
        [(_, answers)] = stored_answers(newest, protocol.name, [part], sampling.n)
    return answers


def _head(store: Path) -> Mapping[str, Any]:
    """The first line of a directory of responses; empty if it is none."""
    try:
        with sorted(store.glob("part-*.jsonl"))[0].open(encoding="utf-8") as stream:
            head = json.loads(stream.readline())
    except (OSError, ValueError):
        return {}
    return head if isinstance(head, Mapping) else {}


def _is_of(settings: Any, wanted: Mapping[str, Any], decoder: Mapping[str, Any]) -> bool:
    """Whether responses were made with these settings, as far as their first line says."""
    if not isinstance(settings, Mapping) or not isinstance(settings.get("decoder"), Mapping):
        return False
    return wanted.items() <= settings.items() and decoder.items() <= settings["decoder"].items()


def _scores(directory: Path, protocol: Protocol, part: Part) -> ScoreFile | None:
    """The scores under the protocol's settings; None where these cannot be said, such as without the judge."""
    try:
        return ScoreFile(directory, part_name(protocol.name, part), protocol.scoring_settings())
    except UserError:
        return None
