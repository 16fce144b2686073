"""MT-Bench-101: every turn of a dialogue answered behind its gold history, and rated by a judge."""

import importlib.resources
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from ts2_lightning.evaluation.intervals import bootstrap_of_groups
from ts2_lightning.evaluation.judges import Case, ChatJudge, ChatSettings, Judge, JudgePrompt, rating
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.items import Answered, Estimate, Item, Part, Sampling
from ts2_lightning.evaluation.protocols.judged import BESIDE_VERDICTS, JudgedProtocol, beside_verdicts, read_scores
from ts2_lightning.generation.requests import Response
from ts2_lightning.ranges import Only, check_number
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

TASKS = {
    "CM": "context memory",
    "SI": "separate input",
    "AR": "anaphora resolution",
    "TS": "topic shift",
    "CC": "content confusion",
    "CR": "content rephrasing",
    "FR": "format rephrasing",
    "SC": "self-correction",
    "SA": "self-affirmation",
    "MR": "mathematical reasoning",
    "GR": "general reasoning",
    "IC": "instruction clarification",
    "PI": "proactive interaction",
}
"""Tasks in the order of TS2's table 6."""

FIRST_TURN_SETS_THE_SCENE = frozenset({"FR", "CR", "AR", "SA", "SC", "CM"})
"""Tasks whose first turn only sets the scene: it is neither asked nor rated."""

WITH_SOLUTION = frozenset({"MR", "GR"})
"""Tasks whose judge sees the gold dialogue as the solution."""

PROMPTS = "mtbench101_prompts.json"
"""File beside this one: what OpenCompass asks the judge, with its source and licence."""

# The user's turn to the judge: its white space is OpenCompass's, as is the rest (see PROMPTS).
_SHOWN = "The dialogue need to be judged is: \n *** \n {dialogue} {response} \n ***{solution}"
_SOLUTION = "\n\n" + " " * 20 + "The reference solution is: \n ### \n {solution} \n ###\n\n"

USUAL_JUDGE = ChatSettings(max_new_tokens=2048)
"""A verdict begins with an explanation."""

_RATING = rating(r"Rating:\s*\[\[\s*([0-9]+(?:\.[0-9]+)?)\s*\]\]", 1, 10, take="last")
_RATING_IN_CODE = rating(r"\[([0-9]+)\]")


@dataclass(frozen=True)
class MTBench101(JudgedProtocol):
    """MT-Bench-101: dialogues of 13 tasks, whose turns are answered behind their gold history and rated from 1 to 10.

    A dialogue has its turns' lowest rating, a task the mean over its dialogues, and the whole the mean over tasks. Of
    several responses to each turn the first of all turns make one dialogue, the second another, and so on.

    Attributes:
        tasks: tasks that are used, such as CM and GR; null takes all.
        judge: chat model that rates. TS2 took GPT-4.1 nano.
    """

    name: ClassVar[str] = "mtbench101"
    values: ClassVar = (
        Value("overall", "overall", "mean over the tasks", "higher", ".2f", True),
        Value("dialogue", "of a dialogue", "lowest rating of its turns, mean over dialogues", "higher", ".2f"),
        *(
            Value(task, f"{task} {about}", "lowest rating of a dialogue's turns, mean over dialogues", "higher", ".2f")
            for task, about in TASKS.items()
        ),
        Value("turn", "of a turn", "mean rating over turns", "higher", ".2f"),
        Value("tasks", "tasks", "number of tasks", None, ".0f"),
        Value("dialogues", "dialogues", "number of dialogues", None, ".0f"),
        *BESIDE_VERDICTS,
    )
    data_sets: ClassVar = {
        "mtbench101": DataSet(
            "", "", 3615, "task, id and history, a list of turns with user and bot",
            home="github.com/mtbench101/mt-bench-101: data/subjective/mtbench101.jsonl",
        )
    }  # fmt: skip
    samplings: ClassVar = {
        PAPER: Sampling(1, temperature=0.0, max_new_tokens=2048),
        PAPERS_CODE: Sampling(1, temperature=0.0, max_new_tokens=2048),
    }
    source: ClassVar[str] = "TS2, appendix C.3, tables 5 and 6; Bai et al. (2024), MT-Bench-101"
    prompt: ClassVar[str] = "{turns before, with their gold answers}\n{user}"
    models_needed: ClassVar[str] = "a chat model that judges (TS2: GPT-4.1 nano); 3,615 long verdicts"
    deviations: ClassVar[tuple[str, ...]] = (
        "TS2's text does not say how responses are sampled; it has no code. Here once at temperature 0. OpenCompass "
        "advises to sample, with the model's own settings.",
        "OpenCompass reads the first number in brackets anywhere in the judge's answer, of any size; ours is the last "
        "'Rating: [[x]]', from 1 to 10.",
        "OpenCompass asks no judge again; here an answer that cannot be read is asked once more. Both leave out turns "
        "without a rating, so that a dialogue may lack its worst turn: see judge_unparsed.",
        "The judge of MR and GR sees the gold dialogue as a list in Python's notation, the gold answer last, as in "
        "OpenCompass.",
    )

    tasks: tuple[str, ...] | None = None
    judge: ChatSettings = USUAL_JUDGE

    def check(self) -> None:
        """Raises UserError for a setting that cannot be."""
        check_number("ks", self.ks, Only(None, "ratings"))
        if self.tasks == ():
            raise UserError(f"tasks is empty; name some of {', '.join(TASKS)}, or null for all")
        if unknown := next((task for task in self.tasks or () if task not in TASKS), None):
            raise UserError(f"no task {unknown!r}; there are {', '.join(TASKS)}")
        super().check()

    def make_judge(self) -> Judge:
        """The chat model with OpenCompass's prompts."""
        parser = _RATING_IN_CODE if self.variant == PAPERS_CODE else _RATING
        return ChatJudge(self.judge, JudgePrompt(self.name, _SHOWN, "{criteria}"), parser)

    # Dialogues ----------------------------------------------------------------------------------------------------

    def item(self, row: Row, data_set: str) -> Item:
        """The last turn of a dialogue."""
        return _turns(row)[-1]

    def items_of(self, row: Row, data_set: str) -> list[Item]:
        """The turns of a dialogue that are asked, each behind its gold history; none if its task is not used."""
        turns = _turns(row)
        return turns if self.tasks is None or turns[-1].details["task"] in self.tasks else []

    def items(self, data_set: str) -> list[Item]:
        """The turns of the dialogues; `limit` takes the first so many dialogues, whatever their tasks."""
        items = super().items(data_set)
        if not items:
            raise UserError(f"{self._option(data_set)}: no dialogue of {', '.join(self.tasks or ())} among its rows")
        return items

    def case(self, item: Item, response: Response) -> Case:
        """The turn in its dialogue, with what its task is rated by."""
        prompts, task = judge_prompts(), item.details["task"]
        turns = [*item.history, {"role": "user", "content": item.question}]
        gold = [*map(dict, turns), {"role": "assistant", "content": item.gold}]
        details = {
            "criteria": prompts["judge"] + prompts["tasks"][task] + prompts["score_format"],
            "dialogue": "".join(_SPEAKERS[turn["role"]] + turn["content"] for turn in turns) + _SPEAKERS["assistant"],
            "solution": _SOLUTION.format(solution=gold) if task in WITH_SOLUTION else "",
        }
        return Case(turns, response.text, details=details)

    # Ratings ------------------------------------------------------------------------------------------------------

    def estimate(self, part: Part, answered: Sequence[Answered]) -> Estimate:
        """Of each dialogue the lowest rating, of each task the mean, and the mean of these.

        A dialogue has the id of its last turn, whose history is the whole dialogue. Turns whose verdict could not be
        read are left out, and dialogues without any. The interval of the whole, which is no mean over dialogues, is a
        curve of one point.
        """
        dialogues: dict[str, list[Answered]] = {}
        for of in answered:
            dialogues.setdefault(of.item.details["dialogue"], []).append(of)
        lowest: dict[str, dict[str, float]] = {task: {} for task in TASKS}
        for turns in dialogues.values():
            last = max(turns, key=lambda of: of.item.details["turn"]).item
            if (worst := _lowest(turns)) is not None:
                lowest[last.details["task"]][last.id] = worst
        of_tasks = {task: of_dialogues for task, of_dialogues in lowest.items() if of_dialogues}
        together = {id: worst for of_dialogues in of_tasks.values() for id, worst in of_dialogues.items()}
        values: dict[str, float] = {}
        curves: dict[str, dict[int, list[float]]] = {}
        if together:
            means = {task: statistics.fmean(of_dialogues.values()) for task, of_dialogues in of_tasks.items()}
            overall = bootstrap_of_groups([[*of_dialogues.values()] for of_dialogues in of_tasks.values()])
            curves["overall"] = {1: [*overall[:3]]}
            values |= {"overall": overall.mean, "dialogue": statistics.fmean(together.values()), **means}
            values["turn"] = statistics.fmean(score for of in answered for score in read_scores(of))
        values |= {"tasks": len(of_tasks), "dialogues": len(together)}
        return Estimate({**values, **beside_verdicts(answered)}, {"dialogue": together, **of_tasks}, curves)


_SPEAKERS = {"user": "\n\n Human: ", "assistant": "\n\nAssistant: "}


@cache
def judge_prompts() -> Mapping[str, Any]:
    """What OpenCompass asks the judge: `judge`, `tasks` by their names and `score_format`; `source` and `licence`."""
    text = importlib.resources.files(__package__).joinpath(PROMPTS).read_text(encoding="utf-8")
    prompts: dict[str, Any] = json.loads(text)
    return prompts


def _turns(row: Row) -> list[Item]:
    """The turns of a dialogue that are asked.

    Raises:
        KeyError: a field is not there.
        ValueError: a field is not as it should be.
    """
    task, history = row.text("task"), row.fields["history"]
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    least = 1 + (task in FIRST_TURN_SETS_THE_SCENE)
    if not isinstance(history, Sequence) or isinstance(history, str) or len(history) < least:
        raise ValueError(f"history must be a list of turns with user and bot, at least {least}")
    said = [Row(row.number, row.origin, turn if isinstance(turn, Mapping) else {}) for turn in history]
    dialogue = f"{task}-{row.fields['id']}"
    turns: list[Item] = []
    before: list[Mapping[str, str]] = []
    for number, turn in enumerate(said, start=1):
        user, bot = turn.text("user"), turn.text("bot")
        if number >= least:
            details = {"task": task, "dialogue": dialogue, "turn": number}
            turns.append(Item(f"{dialogue}-{number}", user, bot, history=tuple(before), details=details))
        before += [{"role": "user", "content": user}, {"role": "assistant", "content": bot}]
    return turns


def _lowest(turns: Sequence[Answered]) -> float | None:
    """The lowest rating of a dialogue's turns, mean over the samples; None if there is none."""
    samples = zip(*(of.scored for of in turns), strict=True)
    rated = [[one.score for one in sample if one.answer is not None] for sample in samples]
    worst = [min(ratings) for ratings in rated if ratings]
    return statistics.fmean(worst) if worst else None
