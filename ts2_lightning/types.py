"""The few small types that the rooms hand to each other. Imports nothing but torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

from torch import Tensor

IGNORE_INDEX = -100
"""Label of a token that is not supervised."""

TOKEN_STATISTICS = (
    "cross_entropy",
    "entropy",
    "gold_probability",
    "gold_in_support",
    "support_size",
    "tail_mass",
    "gold_rank",
    "top1",
    "top2",
    "top3",
)
"""What every engine measures at every supervised token when it is asked to (see `ops.statistics`)."""


class UserError(ValueError):
    """Something the user can mend: the message is one line that says what came and what to do.

    The command line prints it and exits with status 2; it never shows a traceback for it. Nor does a notebook.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def check_instance(argument: str, value: object, kind: type, example: str) -> None:
    """Raises a `UserError` for an argument that is no instance of a class, such as its name or the class itself.

    Args:
        argument: Name of the argument, for the message.
        value: What came.
        kind: The class.
        example: How a user writes an instance.

    Example:
        >>> check_instance("rate", "small", float, "0.1")
        Traceback (most recent call last):
        ts2_lightning.types.UserError: rate: expected a float, such as 0.1, got 'small'
    """
    if not isinstance(value, kind):
        came = f"the class {value.__name__}; call it" if isinstance(value, type) else repr(value)
        raise UserError(f"{argument}: expected a {kind.__name__}, such as {example}, got {came}")


class SettingError(UserError):
    """An error that begins with the name of a setting; whoever stands for the setting may name its own instead.

    Args:
        parts: names of settings, and the text between them, in turn.

    Example:
        >>> error = SettingError("data.validation.chat", ": no rows in chat.jsonl")
        >>> print(error.renamed({"data.validation": "probes.rows"}))
        probes.rows.chat: no rows in chat.jsonl
    """

    def __init__(self, *parts: str) -> None:
        super().__init__("".join(parts))
        self.parts = parts

    def renamed(self, names: Mapping[str, str]) -> UserError:
        """The same error with other names.

        Args:
            names: name of a setting -> its name for the user; one that begins with it and a dot is renamed too.
        """

        def called(part: str) -> str:
            new = (new + part.removeprefix(old) for old, new in names.items() if f"{part}.".startswith(f"{old}."))
            return next(new, part)

        return UserError("".join(part if place % 2 else called(part) for place, part in enumerate(self.parts)))


class SharedError(UserError):
    """One that every rank raises, with the same message: it need be told once."""


RejectKind = Literal[
    "malformed JSON",
    "not UTF-8",
    "not an object",
    "missing field",
    "wrong type",
    "unknown role",
    "empty answer",
    "no supervised token",
    "too long",
    "template",
    "other",
    "left out",
]
"""What can be the matter with a row. All are bad rows but `left out`: a good row that a format does not want."""


class RowError(UserError):
    """A row that cannot be trained on. The message does not name the row, whoever read it does.

    Attributes:
        kind: what is the matter, for counting.
    """

    def __init__(self, message: str, kind: RejectKind = "other") -> None:
        super().__init__(message)
        self.kind: RejectKind = kind


class Batch(TypedDict, total=False):
    """One micro-batch, as collate yields it. All values are tensors.

    R rows in B sequences of T tokens, right-padded; N supervised tokens. The shift by one is already done. Without
    packing each row is a sequence, and padding is masked. With packing a sequence holds several rows, and instead of a
    mask there are positions that start again with each of them.
    """

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64, 1 for tokens, 0 for padding; not with packing
    position_ids: Tensor  # [B, T] int64, place of each token in its row, from 0; only with packing
    supervised: Tensor  # [N] int64, flat index b * T + t of the positions whose next token is supervised
    labels: Tensor  # [N] int64, the gold next tokens at those positions
    token_rows: Tensor  # [N] int64, the row r in the batch of each supervised token
    positions: Tensor  # [N] int64, 1-based position of the token within its assistant turn
    lengths: Tensor  # [N] int64, number of supervised tokens of that assistant turn
    weights: Tensor  # [N] float32, factor on each token's loss: its row's weight (the divisor is the number of tokens)
    row_index: Tensor  # [R] int64, index of each row in the dataset; -1 for the filler of an empty micro-batch
    row_spans: Tensor  # [R, 2] int64, start and end of each row in the flattened input_ids
    divisor: Tensor  # [] int64, supervised tokens of the whole optimizer step, over micro-batches and ranks


@dataclass(frozen=True)
class ReferenceOutput:
    """What a frozen reference model says about N tokens, before its head: its logits [N, K] need never exist at once.

    Attributes:
        hidden_states: Last hidden states [N, H] of the reference, without a gradient.
        head: The head of the reference, which maps hidden states [n, H] to logits [n, K].
    """

    hidden_states: Tensor
    head: Callable[[Tensor], Tensor]

    def __getitem__(self, part: slice) -> "ReferenceOutput":
        return ReferenceOutput(self.hidden_states[part], self.head)


class Targets(NamedTuple):
    """What is known of the N supervised tokens, from the batch to the loss: a new per-token input is a new field here.

    Attributes:
        labels: [N] int64, the gold tokens.
        weights: [N] factors on the tokens' losses, or None for ones.
        positions: [N] 1-based position of each token within its response, or None.
        lengths: [N] number of tokens of that response, or None.
        reference: What a reference model says about the tokens, for losses that need it, or None.

    Example:
        >>> import torch
        >>> Targets(torch.tensor([5, 6, 7]), positions=torch.tensor([1, 2, 3])).part(slice(1, 3)).positions
        tensor([2, 3])
    """

    labels: Tensor
    weights: Tensor | None = None
    positions: Tensor | None = None
    lengths: Tensor | None = None
    reference: ReferenceOutput | None = None

    @classmethod
    def of(cls, source: "Batch | Tensor | Targets") -> "Targets":
        """The targets of a batch, of labels alone, or those that are targets already."""
        if isinstance(source, Targets):
            return source
        if isinstance(source, Tensor):
            return cls(source)
        return cls(source["labels"], source.get("weights"), source.get("positions"), source.get("lengths"))

    def part(self, part: slice) -> "Targets":
        """The targets of some of the tokens."""
        if part == slice(0, len(self.labels)):
            return self
        return Targets(*(None if field is None else field[part] for field in self))  # type: ignore[arg-type]


class LossOutput(NamedTuple):
    """What an engine returns.

    Attributes:
        total: [] differentiable sum of the tokens' losses, not divided by anything.
        tokens: per supervised token and detached, each [N] in the dtype of the loss: `"objective"`, `"objective/PART"`
            for each part of a composite loss, and the statistics that were asked for.
    """

    total: Tensor
    tokens: dict[str, Tensor]
