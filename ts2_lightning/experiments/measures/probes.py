"""The probes of choice: numbers, pictures, and values that are compared between models."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from ts2_lightning.data import SFTData
from ts2_lightning.data.formats import Conversation
from ts2_lightning.data.loader import BatchLoader
from ts2_lightning.evaluation.inputs import encode_prompt, micro_questions
from ts2_lightning.evaluation.probes import PROBES, SETTING_RANGES, Settings, Subject, write_probe
from ts2_lightning.experiments.measures.base import Measure, Measured
from ts2_lightning.experiments.measures.target import Rows, Target
from ts2_lightning.ranges import COUNT, NULL, check_numbers
from ts2_lightning.types import Batch, UserError
from ts2_lightning.values import Value

_USUAL = Settings()
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


@dataclass(frozen=True)
class Probes(Measure):
    """Probes of the distributions, see `evaluation.probes`; with pictures beside the values.

    Attributes:
        kinds: which probes.
        rows: of tail and tspd; null takes the run's `data.validation`.
        prompts: of macro; null takes the run's `data.validation`.
        format: of rows and prompts; null takes the run's, for those that are named here `auto`.
        limit: use the first so many rows, and the first so many prompts.
        max_length: tokens of a row, at most; null takes the run's.
        batch_size: rows in one forward pass; null takes the run's.
        queries: of micro, answers that are sampled.
        samples: of macro, responses per prompt.
        max_new_tokens: of macro.
        temperature: of macro.
        top_k: of macro; 0 keeps all.
        top_p: of macro.
        seed: of what is sampled.
    """

    name: ClassVar[str] = "probes"
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

    kinds: list[Literal["micro", "macro", "tail", "tspd"]] = field(default_factory=lambda: ["tail", "tspd"])
    rows: Rows = None
    prompts: Rows = None
    format: str | None = None
    limit: int | None = None
    max_length: int | None = None
    batch_size: int | None = None
    queries: int = _USUAL.queries
    samples: int = _USUAL.samples
    max_new_tokens: int = _USUAL.max_new_tokens
    temperature: float = _USUAL.temperature
    top_k: int = _USUAL.top_k
    top_p: float = _USUAL.top_p
    seed: int = _USUAL.seed

    def check(self) -> None:
        """Raises UserError for a number out of its range, or no probe."""
        optional = (COUNT, NULL)
        check_numbers("", self, limit=optional, max_length=optional, batch_size=optional, **SETTING_RANGES)
        if not self.kinds:
            raise UserError(f"kinds: name some of {', '.join(PROBES)}")

    def inputs(self, target: Target) -> Any:
        """The files of rows and prompts, by their content."""
        return [target.row_identity(self._data(target, what)) for what in ("rows", "prompts") if self._reads(what)]

    def measure(self, target: Target, beside: Path) -> Measured:
        """Each probe's numbers and pictures, into the directory `beside`; its telling numbers as `PROBE/NAME`.

        `tspd/share` is that of tokens with TSPD(2, 0.1, 0.2). The values of micro are means over its questions.
        """
        subject = self._subject(target)
        settings = Settings(**{setting.name: getattr(self, setting.name) for setting in fields(Settings)})
        numbers: dict[str, Any] = {
            kind: PROBES[kind].measure(subject, settings) for kind in PROBES if kind in self.kinds
        }
        for kind, found in numbers.items():
            write_probe(kind, {subject.name: found}, {**asdict(self), "decoding": target.decoding}, beside)
        values = {f"{kind}/{name}": value for kind, found in numbers.items() for name, value in _values(kind, found)}
        return Measured(values, numbers)

    def _reads(self, what: str) -> bool:
        return any(PROBES[kind].reads == what for kind in self.kinds)

    def _data(self, target: Target, what: str) -> SFTData:
        given = self.rows if what == "rows" else self.prompts
        return target.validation_data(
            f"probes.{what}", given, format=self.format, limit_validation=self.limit if what == "rows" else None,
            max_length=self.max_length, eval_batch_size=self.batch_size,
        )  # fmt: skip

    def _subject(self, target: Target) -> Subject:
        """What is asked; what no probe needs is not read."""
        questions, opening = micro_questions(target.is_toy_world)
        asked = [Conversation.asking(question) for question in questions]
        prompts, batches = [], _AllBatches()
        if self._reads("prompts"):
            prompts = target.prompts("probes.prompts", self._data(target, "prompts"), self.limit)
        if self._reads("rows"):
            batches = _AllBatches(target.read_rows(self._data(target, "rows")))
        return Subject(
            target.title,
            target.model,
            target.tokenizer,
            target.decoding,
            tuple(target.end_ids),
            [encode_prompt(target.chat_template, messages, opening) for messages in asked],
            first_token=target.is_toy_world,
            prompts=prompts,
            batches=batches,
        )


class _AllBatches:
    """The batches of all validation sets one after the other, with a number of its own for every row.

    Args:
        data: set up for `validate`; None for no batches.
    """

    def __init__(self, data: SFTData | None = None) -> None:
        loaders: Any = {} if data is None else data.val_dataloader()
        self._loaders: list[BatchLoader] = list(loaders.values()) if isinstance(loaders, Mapping) else [loaders]
        rows = [] if data is None else [len(data.rows(name)) for name in data.sets.of("validation")]
        self._before = [sum(rows[:place]) for place in range(len(rows))]

    def __len__(self) -> int:
        return sum(map(len, self._loaders))

    def __iter__(self) -> Iterator[Batch]:
        for before, loader in zip(self._before, self._loaders, strict=True):
            for batch in loader:
                batch["row_index"] = batch["row_index"] + before
                yield batch


def _values(kind: str, found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The telling numbers of a probe."""
    for name, source in _COPIED.get(kind, {}).items():
        yield name, found[source]
    if kind == "tspd":
        cells = {(cell["m"], cell["eps_head"], cell["eps_tail"]): cell["share"] for cell in found["grid"]}
        yield "share", cells[2, 0.1, 0.2]
    if kind == "micro":
        for name in _MICRO:
            known = [question[name] for question in found["questions"] if question[name] is not None]
            if known:
                yield name, statistics.fmean(known)
