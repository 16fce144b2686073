"""Reward models: what a response is worth, as one number that was learnt from people's preferences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ts2_lightning.evaluation.judges.base import OF_NO_VERDICT, Case, plain_judge
from ts2_lightning.evaluation.judges.classifier import ClassifierJudge
from ts2_lightning.evaluation.judges.questions import chat_text
from ts2_lightning.generation.backends.endpoint import PREFIX
from ts2_lightning.generation.requests import Asked
from ts2_lightning.ranges import COUNT, NULL, check_numbers
from ts2_lightning.types import UserError

PAPERS_REWARD_MODEL = "sfairXC/FsfairX-LLaMA3-RM-v0.1"
"""TS2's and GEM's; Llama 3 with 8B parameters and one output."""

SAID = "said"
"""Name among a case's details of what the papers' code takes for the question: the prompt of the measured model."""

RewardFormat = Literal["model", "papers_code"]
FORMATS: tuple[RewardFormat, ...] = ("model", "papers_code")


@dataclass(frozen=True)
class RewardSettings:
    """A reward model, and how it is asked.

    Attributes:
        model: a transformers directory with one output, or a name on the hub.
        format: `model`: the chat as the model's own template writes it, the reward read behind the answer;
            `papers_code`: as the papers' code has it, read behind the header of a further answer. Null takes what the
            variant of the protocol says, else `model`.
        max_tokens: largest number of tokens of prompt and response, what is behind is cut off; null refuses what the
            model does not take.
        device: where it computes, several with commas between them; null takes every GPU, or else the CPU. No reward
            depends on it, nor on the next one.
        batch_size: texts at a time; halved where memory runs out.

    Raises:
        UserError: a setting that cannot be.
    """

    model: str = PAPERS_REWARD_MODEL
    format: RewardFormat | None = None
    max_tokens: int | None = None
    device: str | None = field(default=None, metadata=OF_NO_VERDICT)
    batch_size: int = field(default=16, metadata=OF_NO_VERDICT)

    def __post_init__(self) -> None:
        check_numbers("reward.", self, max_tokens=(COUNT, NULL), batch_size=COUNT)
        if self.format not in (*FORMATS, None):
            raise UserError(f"reward.format: no format {self.format!r}; there is {', '.join(FORMATS)}")
        if not self.model:
            raise UserError("reward.model is empty; name a directory or a model on the hub")
        if self.model.startswith(PREFIX):
            raise UserError(
                f"reward.model {self.model}: no server gives rewards; name a directory or a model on the hub"
            )


class RewardModel(ClassifierJudge):
    """A reward model as a judge; the value of a verdict is the reward, on the model's own scale.

    Format `model` is the documented use of these models: the chat with the answer, without the header of a further one,
    and one token that begins it. Format `papers_code` is that of TS2's and GEM's `evaluation_reward.py`: the header of
    a further answer follows, so that the reward is read behind that header, and the question is the whole prompt of the
    measured model without control tokens (`SAID` in the case's details; a system header that its template writes stays
    in it). Where a case has none, such as an answer out of a file, it is the question, as in that code.

    Args:
        settings: model and format.
    """

    name: ClassVar[str] = "reward"
    labels: ClassVar[int] = 1

    def __init__(self, settings: RewardSettings) -> None:
        super().__init__(settings.model, settings.model, settings.device, settings.batch_size)
        self._settings = settings
        self.format: RewardFormat = settings.format or "model"

    @property
    def identity(self) -> Any:
        """The model's files, and how it is asked."""
        plain = {**plain_judge(self._settings), "format": self.format, "model": self.model_identity}
        return ["reward", 1, plain]

    def check(self) -> None:
        """As the base class; its tokenizer must have a chat template."""
        super().check()
        self.text(({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello."}))

    def text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat as the model's template writes it.

        Raises:
            UserError: there is no template, or it refuses the chat.
        """
        return chat_text(self.tokenizer, messages, self.model, opened=self.format == "papers_code")

    def prompt(self, case: Case) -> Asked:
        """The token ids of the chat, with one token that begins it, whether the template or the tokenizer writes it."""
        turns = [dict(turn) for turn in case.messages]
        if self.format == "papers_code" and SAID in case.details:
            turns = [{"role": "user", "content": str(case.details[SAID])}]
        text = self.text([*turns, {"role": "assistant", "content": case.response}])
        tokenizer: Any = self.tokenizer
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        begin = tokenizer.bos_token_id
        if begin is not None and ids[:1] != [begin] and tokenizer("")["input_ids"][:1] == [begin]:
            ids = [begin, *ids]
        return self.compact(ids[: self._settings.max_tokens])

    def read(self, answer: str, case: Case) -> float | None:
        """The reward."""
        return read_numbers(answer, 1)[0]


def read_numbers(answer: str, count: int) -> list[float]:
    """The numbers of a classifier's answer.

    Raises:
        UserError: they are not there, so that the file was not written by this package.
    """
    try:
        numbers = [float(number) for number in json.loads(answer)]
        if len(numbers) != count:
            raise ValueError
    except (ValueError, TypeError):
        raise UserError(
            f"a judge's answer on disk is {answer[:60]!r}, and no list of {count}; remove its file"
        ) from None
    return numbers
