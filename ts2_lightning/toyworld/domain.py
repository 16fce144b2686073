"""The toy world as a domain of requests with known answers, and how its base model is asked."""

from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.templates import ChatTemplate
from ts2_lightning.evaluation.domains import Domain
from ts2_lightning.evaluation.prompts import Question
from ts2_lightning.toyworld import load_world
from ts2_lightning.toyworld.exact import plausible_first_tokens

_TEXT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %} {{ message['content'] }} {{ bos_token }}"
    "{% else %}{{ bos_token }} {{ message['content'] }} ,{% endif %}{% endfor %}"
)
"""How the base model is asked, which has never seen the chat tokens: a sentence of its pretraining text."""


def text_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The template of the base model: `<s> name a fruit , the answer is plum . <s>`.

    Example:
        >>> from ts2_lightning.toyworld import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> ids = text_template(tokenizer).render_prompt([{"role": "user", "content": "name a fruit"}])
        >>> tokenizer.decode(ids)
        '<s> name a fruit ,'
    """
    return ChatTemplate("toy world's text", _TEXT, tokenizer)


class ToyWorldDomain(Domain):
    """Requests of the toy world to a model with its tokenizer."""

    validation_rows: ClassVar[str] = "toyworld:validation"
    test_rows: ClassVar[str] = "toyworld:test"

    def has(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a tokenizer has the world's words, each at its place."""
        return dict(tokenizer.get_vocab()) == {token: i for i, token in enumerate(load_world().vocabulary)}

    def questions(self) -> tuple[list[Question], str]:
        """Held-out requests of which one, two and three answers are taught.

        Example:
            >>> questions, opening = ToyWorldDomain().questions()
            >>> questions[0].conversation.messages[0]["content"], opening
            ('think of a single digit number', 'the answer is')
        """
        world = load_world()  # the first family is that of the digits
        counts = sorted({len(family.taught) for family in world.seen})
        families = [next(family for family in world.seen if len(family.taught) == count) for count in counts]
        return [Question.asking(family.held_out[0]) for family in families], world.opening

    def plausible_tokens(
        self, request: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int
    ) -> tuple[Tensor, dict[str, str]] | None:
        """First tokens of the family's answers; the share of each that fine-tuning teaches."""
        family = next((family for family in load_world().families if request in family.requests), None)
        if family is None:
            return None
        taught = {answer.split()[0]: f"taught {share:.0%}" for answer, share in family.taught.items()}
        return plausible_first_tokens(tokenizer, family, vocabulary), taught
