"""HumanEval: programs that models write, judged by tests in a sandbox: pass@k."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from ts2_lightning.evaluation.answers import code
from ts2_lightning.evaluation.measure import Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE, Protocol
from ts2_lightning.evaluation.protocols.data import DataSet, Row, data_identity
from ts2_lightning.evaluation.protocols.items import Item, Part, Sampling, Scored
from ts2_lightning.evaluation.protocols.right_answers import right_answer_values
from ts2_lightning.evaluation.protocols.stored import Answers
from ts2_lightning.generation.requests import Response
from ts2_lightning.ranges import COUNT, NULL, Range, check_numbers
from ts2_lightning.sandbox import Program, Sandbox, SandboxSettings, Verdict
from ts2_lightning.types import UserError

INSTRUCTION = "Write a solution to the following problem:\n```python\n{prompt}\n```"
PROMPT = (
    "You are an exceptionally intelligent coding assistant that consistently delivers accurate and reliable responses "
    f"to user instructions.\n\n@@ Instruction\n{INSTRUCTION}\n"
)
NO_CODE = ("SyntaxError", "IndentationError", "TabError")
"""Exceptions of what is no Python: there is no program in such a response."""

_OPENINGS = {"normal": "```python\n    {prompt}", "simple": "```python", "none": ""}
_NOT_OF_VALUES = ("run_code", "i_know_what_i_run", "workers")
"""Settings that no value depends on."""

Answered = tuple[Item, Sequence[Response]]


@dataclass(frozen=True)
class HumanEval(Protocol):
    """Programs from docstrings: any of k passes the tests. The tests run what the model wrote, in a sandbox.

    Without `run_code` nothing is run, and nothing is sampled by `evaluate`; `generate` samples without it. Verdicts are
    written as they come. A file of HumanEval+ with the field `test` takes the place of the data; responses to the same
    prompts are not made again.

    Attributes:
        rule: how the program is read in a response: `fenced`, in the first block of code of a chat answer; `prefilled`,
            up to the end of the block that the answer was begun with; `completion`, behind the prompt alone, without
            a chat, for base models. Null takes the variant's: `fenced` of `paper`, `prefilled` of `papers_code`.
        opening: what answers are begun with where the rule is `prefilled`: `normal`, a block with the prompt in it; or
            `simple`, a block.
        run_code: whether programs that the model wrote may be run.
        sandbox: what is around them: `auto`, `bwrap`, `docker:IMAGE` or `none`.
        i_know_what_i_run: whether `none` is meant.
        seconds: time limit of a program.
        workers: programs at a time; null takes one for each core.
        packages: installed packages that programs and tests may import beside the standard library; tests of
            HumanEval+ need numpy.
    """

    name: ClassVar[str] = "humaneval"
    values: ClassVar = right_answer_values()
    data_sets: ClassVar = {
        "humaneval": DataSet("openai/openai_humaneval", "test", 164, "task_id, prompt, entry_point and test")
    }
    samplings: ClassVar = {
        PAPER: Sampling(200, temperature=0.6, top_k=50, top_p=0.9),
        PAPERS_CODE: Sampling(200, temperature=0.6, top_p=0.9),
    }
    usual_ks: ClassVar[tuple[int, ...]] = (1, 10, 20, 50, 100)
    source: ClassVar[str] = "TS2, section 5.1 and appendix C.6; GEM, section 6.1"
    prompt: ClassVar[str] = PROMPT
    models_needed: ClassVar[str] = "none (programs run in a sandbox, with run_code)"
    planes: ClassVar = (("humaneval/distinct_answers", "humaneval/pass_at_1"),)
    deviations: ClassVar[tuple[str, ...]] = (
        "Text: top-k 50; code: none.",
        "Code: the answer is begun with a block that has the prompt in it, its first line indented by four spaces, and "
        "ends with that block. The text says nothing of it; the variant papers_code does it.",
        "Code: the prompt begins with two tokens for the beginning of a text; ours with one.",
        "Code: evalplus compares results with those of the reference on the same inputs; ours runs HumanEval's own "
        "tests.",
        "Text of GEM: 163 problems once; there are 164.",
    )

    rule: Literal["prefilled", "fenced", "completion"] | None = None
    opening: Literal["normal", "simple"] = "normal"
    run_code: bool = False
    sandbox: str = "auto"
    i_know_what_i_run: bool = False
    seconds: float = 3.0
    workers: int | None = None
    packages: tuple[str, ...] = ()

    @property
    def chosen_rule(self) -> code.Rule:
        """The rule, or the variant's."""
        return self.rule or ("prefilled" if self.variant == PAPERS_CODE else "fenced")

    def check(self) -> None:
        """Raises UserError for a setting that cannot be."""
        super().check()
        check_numbers("", self, seconds=Range(above=0, most=3600), workers=(COUNT, NULL))
        if self.opening == "simple" and self.chosen_rule != "prefilled":
            raise UserError(f"opening begins answers where rule is prefilled; it is {self.chosen_rule}")
        self._sandbox()

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values, without those that no value depends on."""
        plain = {name: value for name, value in super().plain_settings().items() if name not in _NOT_OF_VALUES}
        return {**plain, "rule": self.chosen_rule}

    def check_model(self, model: Model) -> None:
        """Raises UserError where code must not be run, or cannot be kept in, or for rows that are no problems."""
        if not self.run_code:
            raise UserError(
                "humaneval runs programs that the model wrote, which has to be allowed: --run_code, or {humaneval: "
                "{run_code: true}}; docs/security.md has what keeps them in. `generate` samples without it"
            )
        super().check_model(model)
        _layers(self._sandbox())

    def inputs(self, model: Model) -> Any:
        """As of every protocol; of responses that are there the file of tests too."""
        inputs = super().inputs(model)
        if model.responses is None or self.data is None:
            return inputs
        [(name, described)] = self.data_sets.items()
        return [inputs, data_identity(described, self._file(name), self._option(name))]

    def responses(self, model: Model, directory: Path) -> Iterator[tuple[Part, Answers]]:
        """The responses to the problems of each part; stored ones are judged by the tests of `data`, if it is named."""
        for part, by_item in super().responses(model, directory):
            if model.responses is not None and self.data is not None:
                by_item = self._by_these_tests(part, by_item, model.responses)
            yield part, by_item

    def _by_these_tests(self, part: Part, by_item: Answers, place: Path) -> Answers:
        """Responses with the problems of `data`; those to other problems are left out."""
        own = {item.id: item for item in self.items(part.data_set)}
        for item, _ in by_item:
            if item.id in own and own[item.id].details["prompt"] != item.details["prompt"]:
                raise UserError(f"{self.name}.data: {item.id} has another prompt there than in {place}")
        some = [(own[item.id], responses) for item, responses in by_item if item.id in own]
        if not some:
            raise UserError(f"{self.name}.data: none of its problems has responses in {place}")
        return some

    def item(self, row: Row, data_set: str) -> Item:
        """The problem; its program and tests are details."""
        problem = code.Problem(row.text("prompt"), row.text("entry_point"), _test(row))
        if not problem.entry_point.isidentifier():
            raise ValueError(f"entry_point must be the name of a function, got {problem.entry_point[:60]!r}")
        if f"def {problem.entry_point}" not in problem.prompt:
            raise ValueError(f"prompt does not begin the function {problem.entry_point}")
        return self._asked(row.text("task_id"), problem)

    def _asked(self, name: str, problem: code.Problem) -> Item:
        details = asdict(problem)
        if self.chosen_rule == "completion":
            return Item(name, problem.prompt, continued=True, details=details)
        prompt = problem.prompt.strip()
        opening = _OPENINGS[self.opening if self.chosen_rule == "prefilled" else "none"]
        return Item(name, PROMPT.format(prompt=prompt), opening=opening.format(prompt=prompt), details=details)

    def scoring_settings(self) -> dict[str, Any]:
        """How the program is read, and what it may do."""
        names = ("sandbox", "seconds", "packages")
        limits = {name: value for name, value in self.plain_settings().items() if name in names}
        return {**super().scoring_settings(), "rule": self.chosen_rule, **limits}

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """Runs the programs in the responses to one problem."""
        by_key = {one.key: one for _, scored in self.score_all([(item, responses)]) for one in scored}
        return [by_key[one.key] for one in responses]

    def score_all(self, answered: Iterable[Answered]) -> Iterator[tuple[Item, list[Scored]]]:
        """Runs programs as they come, several at a time; equal ones of a problem once."""
        waiting: dict[str, tuple[Item, str, list[str]]] = {}
        with Sandbox(self._sandbox()) as sandbox:
            for verdict in sandbox.run(self._programs(answered, waiting)):
                item, answer, keys = waiting.pop(verdict.key)
                yield item, [_scored(key, answer, verdict) for key in keys]

    def _programs(
        self, answered: Iterable[Answered], waiting: dict[str, tuple[Item, str, list[str]]]
    ) -> Iterator[Program]:
        """The different programs in responses; `waiting` gets the responses that each stands for."""
        number = 0
        for item, responses in answered:
            problem = code.Problem(**item.details)
            same: dict[str, list[str]] = {}
            for one in responses:
                same.setdefault(code.extract(_printable(one.text), problem, self.chosen_rule), []).append(one.key)
            for solution, keys in same.items():
                waiting[name := str(number)] = (item, code.as_completion(solution, problem), keys)
                yield Program(name, code.program(solution, problem), self.seconds)
                number += 1

    def measure(self, model: Model, beside: Path) -> Measured:
        """As of every protocol; document `sandbox`: what was around the programs, from the outside in."""
        measured = super().measure(model, beside)
        return Measured(measured.values, {**measured.documents, "sandbox": [*_layers(self._sandbox())]})

    def _sandbox(self) -> SandboxSettings:
        return SandboxSettings(
            run_code=self.run_code,
            sandbox=self.sandbox,
            i_know_what_i_run=self.i_know_what_i_run,
            workers=self.workers,
            packages=tuple(self.packages),
        )


@cache
def _layers(settings: SandboxSettings) -> tuple[str, ...]:
    """What the sandbox puts around programs; it attacks itself for this, once in a process.

    Raises:
        UserError: this machine cannot keep programs in.
    """
    with Sandbox(settings) as sandbox:
        return tuple(sandbox.layers)


def _test(row: Row) -> str:
    if "test" not in row.fields and "plus_input" in row.fields:
        raise ValueError("inputs without tests; take the file of HumanEval+ that has the field test")
    test = row.text("test")
    if "def check(" not in test:
        raise ValueError("test does not define check(candidate)")
    return test


def _printable(text: str) -> str:
    """The text without halves of characters, which no file and no program can have."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _scored(key: str, answer: str, verdict: Verdict) -> Scored:
    read = bool(answer.strip()) and verdict.reason not in NO_CODE
    note = "" if verdict.passed else " ".join(filter(None, [verdict.outcome, verdict.reason]))
    return Scored(key, answer if read else None, float(verdict.passed), note)
