"""Probes as a measure: numbers, pictures, and values that are compared between models."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from ts2_lightning.data import SFTData
from ts2_lightning.evaluation.measure import Measure, Measured
from ts2_lightning.evaluation.model import Model, Rows, ValidationBatches
from ts2_lightning.evaluation.probes import PROBES, macro, micro, tail, tspd, write_probe
from ts2_lightning.evaluation.probes.tokens import token_table
from ts2_lightning.evaluation.prompts import Prompt, Question
from ts2_lightning.generation import DECODING, Request
from ts2_lightning.ranges import COUNT, NULL, SEED, check_numbers
from ts2_lightning.runs.stamps import digest
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

_MICRO = ("implausible_mass", "tail_mass", "support_size", "entropy")
_COPIED = {
    "tail": {name: name for name in ("top1", "top2", "top3", "tail_mass", "support_size")},
    "tspd": {
        "support_size": "support_size/mean",
        "zero_gradient": "zero_gradient",
        "entropy": "entropy",
        "gold_probability": "gold_probability",
    },
    "macro": {name: name for name in ("mean", "standard_deviation", "median")},
}
"""Probe -> value -> which of the probe's numbers it is."""

_TAIL_MASS = "softmax mass outside of the sparsemax support, mean over the validation rows"
_TSPD_SHARE = "share of tokens with two candidates of at least 0.1 each and at most 0.2 on all others"
_MACRO_MEAN = "mean probability of the tokens of a sampled response"
_IMPLAUSIBLE = "mass of the first token of the answer outside of the plausible ones"

_FEW = 32
"""Tokens of a response to a question of micro, whose first one counts."""

Kind = Literal["micro", "macro", "tail", "tspd"]


@dataclass(frozen=True)
class Probes(Measure):
    """Probes of the distributions, see `evaluation.probes`; with pictures beside the values.

    Attributes:
        kinds: which probes.
        rows: sources of rows, for tail and tspd; null takes the run's `data.validation`.
        prompts: sources of prompts, for macro; null takes the run's `data.validation`.
        questions: sources of prompts, for micro, which looks at the first token of each answer; null takes requests of
            the model's domain, or the papers' question for a single digit.
        opening: text with which the answers to micro's questions begin already; null takes that of the domain.
        format: format of rows, prompts and questions; null takes the run's, for those that are named here `auto`.
        limit: largest number of rows, and of prompts.
        max_length: tokens of a row, at most; null takes the run's.
        batch_size: rows in one forward pass; null takes the run's.
        queries: answers that micro samples to the papers' question.
        samples: responses that macro samples to each prompt.
        max_new_tokens: tokens of a response of macro, at most.
        temperature: temperature of macro's sampling; with top_k and top_p as in the papers' chat experiments.
        top_k: number of most probable tokens that macro samples from; 0 keeps all.
        top_p: probability mass of the fewest tokens that macro samples from; 1 keeps all.
        seed: seed of what is sampled.
    """

    name: ClassVar[str] = "probes"
    option: ClassVar[str] = "probes."
    """Begins the names of settings in messages."""
    values: ClassVar[tuple[Value, ...]] = (
        Value("tail/top1", "1st token, tail probe", "", None, ".3f"),
        Value("tail/top2", "2nd token, tail probe", "", None, ".3f"),
        Value("tail/top3", "3rd token, tail probe", "", None, ".3f"),
        Value("tail/tail_mass", "tail mass, tail probe", _TAIL_MASS, None, ".3f", True),
        Value("tail/support_size", "support, tail probe", "", None, ".2f"),
        Value("tspd/share", "TSPD(2, .1, .2)", _TSPD_SHARE, None, ".3f", True),
        Value("tspd/support_size", "support, TSPD probe", "", None, ".2f"),
        Value("tspd/zero_gradient", "gold alone in support", "", None, ".3f"),
        Value("tspd/entropy", "entropy, TSPD probe", "", None, ".3f"),
        Value("tspd/gold_probability", "p(gold), TSPD probe", "", None, ".3f"),
        Value("macro/mean", "p(sampled), macro probe", _MACRO_MEAN, None, ".3f", True),
        Value("macro/median", "median p(sampled), macro probe", "", None, ".3f"),
        Value("macro/standard_deviation", "s.d. of p(sampled), macro probe", "", None, ".3f"),
        Value("micro/implausible_mass", "implausible, micro probe", _IMPLAUSIBLE, "lower", ".3f", True),
        Value("micro/tail_mass", "tail mass, micro probe", "", None, ".3f"),
        Value("micro/support_size", "support, micro probe", "", None, ".2f"),
        Value("micro/entropy", "entropy, micro probe", "", None, ".3f"),
    )

    kinds: list[Kind] = field(default_factory=lambda: ["tail", "tspd"])
    rows: Rows = None
    prompts: Rows = None
    format: str | None = None
    limit: int | None = None
    max_length: int | None = None
    batch_size: int | None = None
    queries: int = 100
    samples: int = 1
    max_new_tokens: int = 512
    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 0.9
    seed: int = 0
    questions: Rows = field(default=None, metadata={"added": "0.2"})
    opening: str | None = field(default=None, metadata={"added": "0.2"})

    def check(self) -> None:
        """Raises UserError for a number out of its range, or no probe."""
        optional, sampled = (COUNT, NULL), dict.fromkeys(("queries", "samples", "max_new_tokens"), COUNT)
        check_numbers(
            "", self, limit=optional, max_length=optional, batch_size=optional, seed=SEED, **sampled, **DECODING
        )
        if not self.kinds:
            raise UserError(f"kinds: name some of {', '.join(PROBES)}")

    def inputs(self, model: Model) -> Any:
        """The files of rows, prompts and questions, by their content."""
        read = filter(self._reads, ("rows", "prompts", "questions"))
        return [model.row_identity(self._option(what), self._data(model, what)) for what in read]

    def check_model(self, model: Model) -> None:
        """Raises UserError for a row, prompt or question that cannot be used: before hours of measuring, not after."""
        for what in ("prompts", "questions"):
            if self._reads(what):
                model.questions(self._option(what), self._data(model, what), self.limit)
        if self._reads("rows"):
            model.read_rows(self._option("rows"), self._data(model, "rows"))

    def measure(self, model: Model, beside: Path) -> Measured:
        """Each probe's numbers as a document; its telling numbers as `PROBE/NAME`.

        `tspd/share` is that of tokens with TSPD(2, 0.1, 0.2). The values of micro are means over its questions.
        """
        documents: dict[str, Any] = {kind: self._numbers(kind, model) for kind in get_args(Kind) if kind in self.kinds}
        values = {
            f"{kind}/{name}": value for kind, numbers in documents.items() for name, value in _values(kind, numbers)
        }
        return Measured(values, documents)

    def draw(self, model: Model, measured: Measured, directory: Path) -> None:
        """The pictures of each probe."""
        settings = {**self.plain_settings(), "decoding": model.decoding}
        for kind, numbers in measured.documents.items():
            write_probe(kind, {model.title: numbers}, settings, directory)

    def requests(self, model: Model, limit: int) -> list[tuple[str, Request]]:
        """Texts of the first prompts of macro, or of micro's questions where there is no macro, each with a request.

        The response is sampled as macro's are, of few tokens to micro's; none where rows alone are read.
        """
        most = self.max_new_tokens
        if "macro" in self.kinds:
            prompts = model.prompts(self._option("prompts"), self._data(model, "prompts"), self.limit)
        else:
            prompts = self._asked(model)[0] if "micro" in self.kinds else []
            most = min(most, _FEW)
        settings = model.generation_settings(
            most, self.seed, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )
        return [(prompt.text, Request(tuple(prompt.ids), 0, settings)) for prompt in prompts[:limit]]

    def _numbers(self, kind: Kind, model: Model) -> dict[str, Any]:
        if kind == "micro":
            return micro.measure(model, *self._asked(model), self.queries, self.seed)
        if kind == "macro":
            prompts = model.prompts(self._option("prompts"), self._data(model, "prompts"), self.limit)
            decoder = replace(model.projection, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
            return macro.measure(model, prompts, decoder, self.samples, self.max_new_tokens, self.seed)
        table = self._table(model)
        return tail.measure(table) if kind == "tail" else tspd.measure(table, self.seed)

    def _asked(self, model: Model) -> tuple[list[Prompt], bool]:
        """What micro asks, and whether it looks at the first token of the answer."""
        asked, opening = [Question.asking(micro.DIGIT_QUESTION)], ""
        if model.domain is not None:
            asked, opening = model.domain.questions()
        if self._reads("questions"):
            asked = model.questions(self._option("questions"), self._data(model, "questions"), self.limit)
        prompts = model.encode(asked, opening if self.opening is None else self.opening)
        return prompts, self._reads("questions") or model.domain is not None

    def _table(self, model: Model) -> dict[str, Tensor]:
        """The table of the rows' tokens; the model keeps it for the other probes that read rows."""
        data = self._data(model, "rows")
        key = digest([model.row_identity(self._option("rows"), data), self.limit])
        if key not in model.tables:
            batches = ValidationBatches(model.read_rows(self._option("rows"), data))
            model.tables[key] = token_table(model.network, batches, model.title)
        return model.tables[key]

    def _option(self, what: str) -> str:
        """Name in messages of the setting with the sources of rows, prompts or questions."""
        return f"{self.option}{what}"

    def _reads(self, what: str) -> bool:
        if what == "questions":
            return "micro" in self.kinds and self.questions is not None
        return any(PROBES[kind].reads == what for kind in self.kinds)

    def _data(self, model: Model, what: str) -> SFTData:
        sources: Rows = getattr(self, what)
        return model.validation_data(
            self._option(what), sources, format=self.format,
            limit_validation=self.limit if what == "rows" else None,
            max_length=self.max_length, eval_batch_size=self.batch_size,
        )  # fmt: skip


def _values(kind: str, numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The telling numbers of a probe."""
    for name, source in _COPIED.get(kind, {}).items():
        yield name, numbers[source]
    if kind == "tspd":
        cells = {(cell["m"], cell["eps_head"], cell["eps_tail"]): cell["share"] for cell in numbers["grid"]}
        yield "share", cells[2, 0.1, 0.2]
    if kind == "micro":
        for name in _MICRO:
            defined = [question[name] for question in numbers["questions"] if question[name] is not None]
            if defined:
                yield name, statistics.fmean(defined)
