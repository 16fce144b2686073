"""Groups of tokens, for means of each group: by the position in the response, and by the kind of token."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ts2_lightning.types import Batch, UserError

CLASSES = ("first", "end", "digits", "words", "other")
"""The kinds of tokens. Every token is of one: the first of its response, else one that ends it, else by its text."""

Groups = dict[str, Tensor]
"""Name of a group -> [N] bool, true for the tokens that belong to it."""


def by_position(positions: Tensor, starts: Sequence[int]) -> Groups:
    """Groups of places in the response.

    Args:
        positions: [N] 1-based position of each token in its response.
        starts: first position of each group, rising; the last group has no end.

    Example:
        >>> groups = by_position(torch.tensor([1, 2, 3, 9]), [1, 2, 5])
        >>> {name: mask.tolist() for name, mask in groups.items()}
        {'1': [True, False, False, False], '2-4': [False, True, True, False], '5-': [False, False, False, True]}
    """
    groups = {}
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        inside = positions >= start if after is None else (positions >= start) & (positions < after)
        name = f"{start}-" if after is None else str(start) if after == start + 1 else f"{start}-{after - 1}"
        groups[name] = inside
    return groups


def by_class(labels: Tensor, positions: Tensor, table: Tensor) -> Groups:
    """Groups of the kinds of tokens.

    Args:
        labels: [N] token ids.
        positions: [N] 1-based position of each token in its response.
        table: [K] kinds of all tokens, from `class_table`.
    """
    kinds = table[labels].masked_fill(positions == 1, CLASSES.index("first"))
    return {name: kinds == number for number, name in enumerate(CLASSES)}


def class_table(tokenizer: Any, ends: Collection[int] = ()) -> Tensor:
    """The kind of every token by itself, [K] uint8: its place in `CLASSES`.

    Digits and words are tokens that are nothing else but for white space around them; parts of words are words too.

    Args:
        tokenizer: tokenizer of transformers.
        ends: further ids that end a response, beside the tokenizer's own.

    Example:
        >>> class Words:
        ...     eos_token_id = 3
        ...     def __len__(self): return 4
        ...     def batch_decode(self, ids): return [[" plum", "12", "x2", "</s>"][i] for [i] in ids]
        >>> [CLASSES[i] for i in class_table(Words())]
        ['words', 'digits', 'other', 'end']
    """
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    table = torch.tensor([CLASSES.index(_kind(text.strip())) for text in texts], dtype=torch.uint8)
    own = tokenizer.eos_token_id
    table[[number for number in {own, *ends} if number is not None]] = CLASSES.index("end")
    return table


def _kind(text: str) -> str:
    return "digits" if text.isdecimal() else "words" if text.isalpha() else "other"


def class_table_of(data: Any) -> Tensor:
    """The table of a data module's tokenizer and template.

    Raises:
        UserError: if it has no tokenizer.
    """
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is None:
        raise UserError("DistributionMonitor: split_by: token_class needs a tokenizer; set data.tokenizer")
    return class_table(tokenizer, getattr(data.template, "end_of_turn_ids", ()))


def split(tokens: Mapping[str, Tensor], groups: Groups) -> dict[str, Tensor]:
    """Columns whose means over all tokens give the means over each group, see `means_of_groups`.

    So sums over groups, pieces and ranks are the sums of one table, and no tensor's size depends on the tokens.

    Args:
        tokens: values [N] of each name.
        groups: groups of the tokens.

    Returns:
        Columns [N]: `GROUP|KEY` with zeros outside of the group, and `GROUP|`, 1 inside of it.
    """
    columns = {}
    for group, inside in groups.items():
        columns[f"{group}|"] = inside.float()
        columns |= {f"{group}|{key}": torch.where(inside, values, 0) for key, values in tokens.items()}
    return columns


def means_of_groups(means: Mapping[str, float]) -> dict[str, float]:
    """From the means of the columns of `split` to `KEY/GROUP` -> mean over the group's tokens, without empty groups.

    `share/GROUP` is the share of tokens in it.

    Example:
        >>> columns = split({"entropy": torch.tensor([1.0, 2.0, 6.0])}, {"a": torch.tensor([True, True, False])})
        >>> means = means_of_groups({name: column.mean().item() for name, column in columns.items()})
        >>> {name: round(mean, 4) for name, mean in means.items()}
        {'share/a': 0.6667, 'entropy/a': 1.5}
    """
    means_by_name = {}
    for column, mean in means.items():
        group, _, key = column.partition("|")
        if share := means[f"{group}|"]:
            means_by_name[f"{key}/{group}" if key else f"share/{group}"] = mean / share if key else mean
    return means_by_name


def groups_of(
    batch: Batch, split_by: Collection[str], starts: Sequence[int], table: Tensor | None
) -> dict[str, Groups]:
    """The groups of each kind in `split_by`: `position` or `token_class` -> groups of the batch's tokens."""
    groups = {}
    if "position" in split_by:
        groups["position"] = by_position(batch["positions"], starts)
    if "token_class" in split_by:
        assert table is not None
        groups["token_class"] = by_class(batch["labels"], batch["positions"], table.to(batch["labels"].device))
    return groups
