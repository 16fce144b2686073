"""Protocols: questions with known answers, how a model is asked them, and how what it responds is scored.

Three stages, each with files of its own: responses -> scores -> values. What is there is not made again: another number
of samples asks for the missing ones only, and another way to score asks for none.
"""

import json
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from ts2_lightning.data.sources import HUB
from ts2_lightning.evaluation.estimates import Unparsed
from ts2_lightning.evaluation.measure import ASKED, PER_ITEM, Measure, Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols.asking import AskedPart, ask, part_name, respond
from ts2_lightning.evaluation.protocols.data import HALF, DataSet, Row, data_identity, read_data
from ts2_lightning.evaluation.protocols.items import (
    Answered,
    Estimate,
    Item,
    Part,
    Sampling,
    Scored,
    fingerprint,
    plain_item,
)
from ts2_lightning.evaluation.protocols.right_answers import estimate_right_answers
from ts2_lightning.evaluation.protocols.scores import NotScoredError, ScoreFile
from ts2_lightning.evaluation.protocols.stored import Answers, stored_answers, stores_of
from ts2_lightning.generation.decoders import DECODING
from ts2_lightning.generation.requests import Response
from ts2_lightning.ranges import COUNT, NULL, SEED, Range, check_number, check_numbers
from ts2_lightning.runs.stamps import digest, file_stamps
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

PAPER, PAPERS_CODE = "paper", "papers_code"


@dataclass(frozen=True)
class Protocol(Measure):
    """Questions with known answers. A subclass says what they are (`item`) and how a response is scored (`score`).

    Attributes:
        data: file with the rows, or `hub:ORG/NAME`; null takes the documented data set of the hub. Where there are
            several data sets, a mapping with their names.
        sets: names of the data sets that are used; null takes all.
        limit: use the first so many rows of each data set.
        n: responses to each question; null takes the variant's, as for the following.
        ks: numbers of samples k that scores are estimated for; null takes the protocol's up to n.
        temperature: 0 takes the most probable token.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest tokens that reach this mass; 1 keeps all.
        max_new_tokens: tokens of a response, at most.
        seed: seed of the sampling.
        batch_size: responses at a time; no value depends on it.
        variant: `paper`: what the text of the paper says; `papers_code`: what its public code does, where they differ.
    """

    titles_with_name: ClassVar[bool] = True

    data_sets: ClassVar[Mapping[str, DataSet]]
    """Data sets by their names."""

    samplings: ClassVar[Mapping[str, Sampling]]
    """The variants that there are, and how each samples."""

    source: ClassVar[str] = ""
    """Paper, with section."""

    prompt: ClassVar[str] = ""
    """What the user says, with the row's fields in braces, for people."""

    deviations: ClassVar[tuple[str, ...]] = ()
    """Where text and public code of the papers differ from each other, or ours from both; a sentence each."""

    models_needed: ClassVar[str] = "none"
    """What is needed beside the model that is measured."""

    usual_ks: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16, 32)
    """The k of scores, as far as there are so many samples."""

    majority: ClassVar[bool] = False
    """Whether the vote of k is one of the values."""

    texts_stay: ClassVar[bool] = False
    """Whether questions and responses stay in their files: no table, page or comparison shows any of them."""

    scoring: ClassVar[int] = 1
    """Version of the way that responses are scored. Raise it with every change: scores are then made anew."""

    data: str | dict[str, str] | None = None
    sets: tuple[str, ...] | None = None
    limit: int | None = None
    n: int | None = None
    ks: tuple[int, ...] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    batch_size: int = 64
    variant: str = PAPER

    # What a subclass says ---------------------------------------------------------------------------------------

    @abstractmethod
    def item(self, row: Row, data_set: str) -> Item:
        """The question of a row.

        Args:
            row: row of the data.
            data_set: name of the data set.

        Raises:
            KeyError: the row has no field of that name.
            ValueError: a field cannot be read.
        """

    def items_of(self, row: Row, data_set: str) -> list[Item]:
        """The questions of a row, for protocols that have several, or none, in one; else the one of `item`."""
        return [self.item(row, data_set)]

    @abstractmethod
    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """Scores the responses to one question, in their order. Equal texts get equal scores."""

    def score_all(self, answered: Sequence[tuple[Item, Sequence[Response]]]) -> Iterator[tuple[Item, list[Scored]]]:
        """Scores many questions, in any order; for protocols that score in several processes."""
        for item, responses in answered:
            yield item, self.score(item, responses)

    def estimate(self, part: Part, answered: Sequence[Answered]) -> Estimate:
        """What follows from the scores of a part; here of answers that are right (1) or wrong (0)."""
        in_code = self.variant == PAPERS_CODE
        return estimate_right_answers(answered, self.ks_of(part), self.chance, self.votes, in_order=in_code)

    def chance(self, item: Item) -> float | None:
        """The probability that a guess is right; None where guessing is of no help."""
        return None

    @property
    def votes(self) -> Unparsed | None:
        """What becomes of a response without an answer where responses vote; None where they do not."""
        return "drop" if self.majority else None

    def parts(self) -> list[Part]:
        """The data sets, each asked in every way."""
        several = len(self.data_sets) > 1
        return [Part(name if several else "", name, self.sampling) for name in self.chosen_sets]

    # What follows from the settings -----------------------------------------------------------------------------

    @property
    def sampling(self) -> Sampling:
        """How responses are sampled: as the variant says, but for what the user has set."""
        names = ("n", "temperature", "top_k", "top_p", "max_new_tokens")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(self.samplings[self.variant], **own)

    @property
    def chosen_sets(self) -> tuple[str, ...]:
        """The names of the data sets that are used, in the order of the protocol."""
        return tuple(name for name in self.data_sets if self.sets is None or name in self.sets)

    def ks_of(self, part: Part) -> tuple[int, ...]:
        """The k that scores are estimated for: those that were asked for, or the usual ones up to n, and n."""
        n = part.sampling.n
        if self.ks is not None:
            return tuple(sorted(k for k in {*self.ks} if k <= n))
        return tuple(sorted({k for k in self.usual_ks if k < n} | {n}))

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values, each with what null stands for; without the number of responses at a time."""
        plain = {**super().plain_settings(), **asdict(self.sampling)}
        del plain["batch_size"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def check(self) -> None:
        """Raises UserError for a setting that cannot be."""
        decoding = {name: (*allowed, NULL) for name, allowed in DECODING.items()}
        counts = dict.fromkeys(("limit", "n", "max_new_tokens"), (COUNT, NULL))
        check_numbers("", self, seed=SEED, batch_size=COUNT, **counts, **decoding)
        if self.variant not in self.samplings:
            hint = did_you_mean(self.variant, self.samplings) or f"; there is {', '.join(self.samplings)}"
            raise UserError(f"no variant {self.variant!r}{hint}")
        named = {**dict.fromkeys(self.sets or ()), **(self.data if isinstance(self.data, dict) else {})}
        if unknown := [name for name in named if name not in self.data_sets]:
            hint = did_you_mean(unknown[0], self.data_sets) or f"; there is {', '.join(self.data_sets)}"
            raise UserError(f"no data set {unknown[0]!r}{hint}")
        if self.sets == ():
            raise UserError(f"sets is empty; name some of {', '.join(self.data_sets)}, or null for all")
        if isinstance(self.data, str) and len(self.chosen_sets) > 1:
            raise UserError(f"data must say which file is which: {{{self.chosen_sets[0]}: FILE, ...}}")
        if self.ks == ():
            raise UserError("ks is empty; name numbers of samples such as [1, 4], or null for the usual ones")
        n = self.sampling.n
        for k in self.ks if isinstance(self.ks, tuple | list) else (self.ks,):
            check_number("ks", k, Range(least=1, most=n, whole=True), NULL)
        check_greedy(self.sampling)

    def judging(self, responses: int) -> Mapping[str, float]:
        """What judging so many responses takes, for plans: numbers by their units, such as `judge calls` or `dollars`.

        Nothing where no other model is needed, see `models_needed`.
        """
        return {}

    @property
    def models_used(self) -> str:
        """The models that are used beside the one that is measured, by their names; `none`."""
        return self.models_needed

    # The three stages -------------------------------------------------------------------------------------------

    def items(self, data_set: str) -> list[Item]:
        """The questions of a data set.

        Raises:
            UserError: naming file and line of a row that is none, and the fields that are wanted.
        """
        described, option = self.data_sets[data_set], self._option(data_set)
        items: list[Item] = []
        for row in read_data(described, self._file(data_set), option, self.limit):
            try:
                items += map(_whole, self.items_of(row, data_set))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                said = f"no field {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{option} {row.origin}: {said}; wanted are rows with {described.fields}") from error
        if len({item.id for item in items}) < len(items):  # each would have the responses of the other
            twice = Counter(item.id for item in items).most_common(1)[0][0]
            raise UserError(f"{option}: two problems are called {twice!r}; their ids must differ")
        return items

    def is_in_files(self, data_set: str) -> bool:
        """Whether the rows of a data set lie in a file that the user has named, and are not those of the hub."""
        file = self._file(data_set)
        return file is not None and not file.startswith(HUB)

    def _file(self, data_set: str) -> str | None:
        return self.data.get(data_set) if isinstance(self.data, dict) else self.data

    def _option(self, data_set: str) -> str:
        return f"{self.name}.data" if len(self.data_sets) == 1 else f"{self.name}.data.{data_set}"

    def inputs(self, model: Model) -> Any:
        """The files of the rows by their content, a tokenizer or template that is not the model's own, the scoring."""
        if model.responses is not None:
            return [[file_stamps(path) for path in stores_of(model.responses)], self.scoring]
        files = [data_identity(self.data_sets[name], self._file(name), self._option(name)) for name in self.chosen_sets]
        return [files, model.asked_with, self.scoring]

    def check_model(self, model: Model) -> None:
        """Raises UserError for rows that are no questions: before hours of sampling, not after."""
        if model.responses is None:
            for name in self.chosen_sets:
                self.items(name)

    def asked(self, model: Model, part: Part) -> AskedPart:
        """What a model is asked in a part: the face for whoever makes responses."""
        return ask(model, self.name, part, self.items(part.data_set), self.seed)

    def measure(self, model: Model, beside: Path) -> Measured:
        """Values of all parts, each under its label; documents `per_item` and `curves`, see `Estimate`, and `asked`.

        The responses are in DIRECTORY/responses and the scores in DIRECTORY/scores, where DIRECTORY is the one that has
        `measures`. What is there of them is not made again.
        """
        values: dict[str, float] = {}
        documents: dict[str, dict[str, Any]] = {PER_ITEM: {}, "curves": {}, ASKED: {}}
        for part, by_item in self.responses(model, beside.parents[1]):
            answered = self.scored(part, by_item, beside.parents[1])
            estimate = self.estimate(part, answered)
            under = f"{part.label}/" if part.label else ""
            values |= {f"{under}{name}": value for name, value in estimate.values.items()}
            documents[ASKED][part.label] = {item.id: fingerprint(item) for item, _ in by_item}
            documents[PER_ITEM] |= {f"{under}{name}": dict(numbers) for name, numbers in estimate.per_item.items()}
            documents["curves"] |= {f"{under}{name}": dict(curve) for name, curve in estimate.curves.items()}
        return Measured(values, documents)

    def responses(self, model: Model, directory: Path) -> Iterator[tuple[Part, Answers]]:
        """The responses to the questions of each part; those that are missing are made."""
        if model.responses is not None:
            yield from stored_answers(model.responses, self.name, self.parts(), self.n)
            return
        for part in self.parts():
            yield part, respond(model, self.asked(model, part), directory, self.batch_size)

    def scored(self, part: Part, by_item: Answers, directory: Path) -> list[Answered]:
        """The questions of a part with responses and scores; those that are missing are made.

        Raises:
            UserError: `score` of a user's protocol returned something else.
        """
        scores = ScoreFile(directory, part_name(self.name, part), self.scoring_settings())
        missing = [(item, [one for one in of_item if (item, one.key) not in scores]) for item, of_item in by_item]
        try:
            for item, scored in self.score_all([(item, of_item) for item, of_item in missing if of_item]):
                scores.append(item, scored)
            return [Answered(item, of_item, [scores[item, one.key] for one in of_item]) for item, of_item in by_item]
        except NotScoredError as error:
            raise UserError(
                f"{self.name}: `score` must return a Scored for each response, in a list ({error})"
            ) from error

    def scoring_settings(self) -> dict[str, Any]:
        """Plain values that the score of a response depends on: all settings that a user's class adds, and its code.

        Ours, whose code has a version instead, add those of their settings that scores depend on.
        """
        common, code = {each.name for each in fields(Protocol)}, _own_code(type(self))
        settings = {} if code is None else self.plain_settings()
        own = {name: value for name, value in settings.items() if name not in common}
        return {"scoring": self.scoring, "variant": self.variant, "code": code, **own}


def _whole(item: Item) -> Item:
    """The item, if all of its text can be put into tokens and files. Raises ValueError for half a character."""
    half = HALF.search(json.dumps(plain_item(item), ensure_ascii=False, default=str))
    if half is not None:
        raise ValueError(f"it has half a character, {half[0]!r}")
    return item


def check_greedy(sampling: Sampling) -> None:
    """Raises UserError for many samples at temperature 0."""
    if sampling.is_greedy and sampling.n > 1:
        raise UserError(f"at temperature 0 all {sampling.n} samples are the same; set n to 1, or another temperature")


def _own_code(protocol: type) -> str | None:
    """A digest of the file of a user's class, which says how responses are scored; ours have a version instead."""
    file = getattr(sys.modules.get(protocol.__module__), "__file__", None)
    if protocol.__module__.startswith("ts2_lightning.") or file is None or not Path(file).is_file():
        return None
    return digest(Path(file).read_text(encoding="utf-8", errors="replace"))
