"""Questions in a model's own tokens, and the responses to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ts2_lightning.data.formats import Conversation, Message
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.prompts import Question
from ts2_lightning.evaluation.protocols.items import Item, Part, plain_item
from ts2_lightning.generation.requests import Asked, GenerationSettings, Request, Response
from ts2_lightning.generation.store import ResponseStore
from ts2_lightning.types import UserError


@dataclass(frozen=True)
class AskedPart:
    """What a model is asked in a part of a protocol.

    Attributes:
        name: name of the part among all of a model's responses, such as `gsm8k-greedy`.
        items: questions, each with an id of its own.
        prompts: what the responses follow, one for each question.
        settings: what the responses are made with.
        n: responses to each question.
    """

    name: str
    items: Sequence[Item]
    prompts: Sequence[Asked]
    settings: GenerationSettings
    n: int

    @property
    def wanted(self) -> dict[str, list[Request]]:
        """The responses that are wanted, by the id of the question; those to the same prompt are the same."""
        return {
            item.id: [Request(prompt, index, self.settings) for index in range(self.n)]
            for item, prompt in zip(self.items, self.prompts, strict=True)
        }


def ask(model: Model, protocol: str, part: Part, items: Sequence[Item], seed: int) -> AskedPart:
    """Puts the questions of a part into a model's tokens.

    Args:
        model: the model.
        protocol: name of the protocol.
        part: how it is asked.
        items: questions.
        seed: seed of the sampling.
    """
    sampling = part.sampling
    settings = model.generation_settings(
        sampling.max_new_tokens, seed, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
    )
    name = part_name(protocol, part)
    return AskedPart(name, items, [_prompt(model, item) for item in items], settings, sampling.n)


def part_name(protocol: str, part: Part) -> str:
    """The name of a part among all of a model's responses.

    Example:
        >>> from ts2_lightning.evaluation.protocols import Sampling
        >>> part_name("gsm8k", Part("greedy", "gsm8k", Sampling(1))), part_name("arc", Part("", "arc", Sampling(1)))
        ('gsm8k-greedy', 'arc')
    """
    return "-".join(filter(None, [protocol, part.asked_as or part.label]))


def _prompt(model: Model, item: Item) -> Asked:
    if model.endpoint is None:
        if item.continued:
            return tuple(model.tokenizer(item.question + item.opening)["input_ids"])
        turns = [Message(role=turn["role"], content=turn["content"]) for turn in item.history]
        turns.append(Message(role="user", content=item.question))
        return tuple(Question(Conversation(turns)).encode(model.chat_template, item.opening).ids)
    if item.continued:
        return item.question + item.opening
    if item.opening:
        raise UserError(f"{model.name}: an endpoint begins its answer itself, and this protocol begins it with text")
    return (*item.history, {"role": "user", "content": item.question})


def respond(
    model: Model,
    asked: AskedPart,
    directory: Path,
    batch_size: int,
    say: Callable[[str], None] | None = None,
    keep_ids: bool = False,
) -> list[tuple[Item, list[Response]]]:
    """The responses to each question of a part: those in DIRECTORY/responses; missing ones are made.

    Args:
        model: the model.
        asked: what it is asked.
        directory: directory of the model's `responses`, `scores` and `measures`.
        batch_size: responses at a time.
        say: takes a line on what is to be made; None shows a progress bar alone.
        keep_ids: whether token ids are written too.

    Raises:
        UserError: a prompt that the model does not take, or a directory that cannot be written to.
    """
    store = ResponseStore(directory, asked.name, asked.settings, model.name)
    store.add_items({item.id: plain_item(item) for item in asked.items})
    made = store.fill(asked.wanted, lambda: model.make_backend(batch_size), asked.name, say, keep_ids)
    return [(item, made[item.id]) for item in asked.items]
