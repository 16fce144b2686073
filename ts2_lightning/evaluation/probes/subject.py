"""What is probed: a model, how it is decoded, and what it is asked, in its own tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.data.toyworld import load_world
from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.models import supervised_logits
from ts2_lightning.generation.sampling import DECODING, Decoder
from ts2_lightning.metrics.functional import token_statistics
from ts2_lightning.ranges import COUNT, SEED, Allowed, check_numbers
from ts2_lightning.types import TOKEN_STATISTICS, Batch

TSPD_ORDERS = (2, 3, 5)
"""The m of TSPD(m, eps_head, eps_tail) that are looked at."""


class Batches(Protocol):
    """Batches whose number is known: a list, or a loader."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[Batch]:
        """One after the other."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        text: what is asked, for people.
        ids: tokens that the answer follows, exactly as in training.
    """

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Settings:
    """How probes sample; the same for all models.

    Attributes:
        seed: of what is sampled.
        queries: of the micro probe, where it samples.
        samples: responses per prompt, of the macro probe.
        max_new_tokens: of a response of the macro probe.
        temperature: of the macro probe; with top_k and top_p those of the papers' chat experiments.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest tokens that reach this mass; 1 keeps all.

    Raises:
        UserError: one is out of its range.
    """

    seed: int = 0
    queries: int = 100
    samples: int = 1
    max_new_tokens: int = 512
    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 0.9

    def __post_init__(self) -> None:
        check_numbers("probe: ", self, **SETTING_RANGES)


SETTING_RANGES: Mapping[str, Allowed | tuple[Allowed, ...]] = {
    "seed": SEED,
    "queries": COUNT,
    "samples": COUNT,
    "max_new_tokens": COUNT,
    **DECODING,
}
"""Of the settings."""


@dataclass
class Subject:
    """A model with what it is asked. What a probe does not need may be empty.

    Attributes:
        name: in pictures.
        model: in evaluation mode.
        tokenizer: its own.
        decoding: one of `DECODINGS`.
        end_ids: tokens that end a response.
        questions: of the micro probe.
        first_token: whether the micro probe takes the first token's distribution, or waits for digits.
        prompts: of the macro probe.
        batches: of rows that are read by teacher forcing (tail, TSPD).
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    decoding: str = "softmax"
    end_ids: tuple[int, ...] = ()
    questions: Sequence[Prompt] = ()
    first_token: bool = True
    prompts: Sequence[Prompt] = ()
    batches: Batches = ()

    @property
    def projection(self) -> Decoder:
        """Makes of logits what the model's distribution is read from, before temperature and truncation."""
        return DECODINGS[self.decoding]

    @cached_property
    def tokens(self) -> dict[str, Tensor]:
        """The table of all supervised tokens: one forward pass for all probes that read rows; see `token_table`."""
        return token_table(self.model, self.batches, self.name)


def token_table(model: PreTrainedModel, batches: Batches, name: str = "") -> dict[str, Tensor]:
    """What is known of every supervised token, each [N] on the CPU.

    Args:
        model: in evaluation mode.
        batches: at least one, padded; `row_index` tells rows apart.
        name: for the progress bar.

    Returns:
        The names of `types.TOKEN_STATISTICS`, `zero_gradient`, `row`, and for each m of `TSPD_ORDERS` what TSPD is
        judged by, `head/m` and `tail/m`.
    """
    orders = {f"tspd_{part}_{m}": f"{part}/{m}" for m in TSPD_ORDERS for part in ("head", "tail")}
    parts: list[dict[str, Tensor]] = []
    for batch in tqdm(batches, desc=f"Reading rows, {name}", unit=" batches", disable=len(batches) < 2):
        rows = batch["row_index"][batch["token_rows"]]
        for here, logits in supervised_logits(model, batch):
            labels = batch["labels"][here].to(logits.device)
            # In one pass: with a real vocabulary, reading a row of logits again takes as long as the model.
            measured = token_statistics(logits, labels, names=(*TOKEN_STATISTICS, *orders))
            part = {orders.get(name, name): values.cpu() for name, values in measured.items()}
            stopped = (part["support_size"] == 1) & (part["gold_in_support"] == 1)  # sparsemax's gradient is zero
            parts.append({**part, "zero_gradient": stopped.to(part["entropy"].dtype), "row": rows[here]})
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def is_toy_world(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is the toy world's, in which the plausible answers are known."""
    return dict(tokenizer.get_vocab()) == {token: i for i, token in enumerate(load_world().vocabulary)}
