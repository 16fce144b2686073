"""Rows that come tokenised."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ts2_lightning.data.formats.fields import TOKENS, Fate, sorted_out
from ts2_lightning.data.formats.values import is_filled, shown
from ts2_lightning.types import IGNORE_INDEX, RowError

_LARGEST_ID = 2**31 - 1
_MASKS = tuple(name for field in TOKENS if field.fate is Fate.MASK for name in field.names)


class TokenRow(NamedTuple):
    """A row that comes tokenised.

    Attributes:
        input_ids: token ids.
        labels: the same ids, with `IGNORE_INDEX` in place of tokens that are not supervised.
        unused: names of fields of the row that are filled, but not used.
    """

    input_ids: list[int]
    labels: list[int]
    unused: tuple[str, ...] = ()


def read_tokens(fields: Mapping[str, Any]) -> TokenRow:
    """The ids of a row and their labels, to which the row's masks are applied.

    Raises:
        RowError: for a malformed mask, and for fields that would be lost.

    Example:
        >>> read_tokens({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}).labels
        [-100, 6, 7]
    """
    ids = fields["input_ids"]
    labels = ids if fields.get("labels") is None else fields["labels"]
    for name in _MASKS:
        if is_filled(fields.get(name)):
            labels = _masked(ids, labels, fields[name], name)
    return TokenRow(ids, labels, tuple(sorted_out(fields, TOKENS, (), "")))


def _masked(ids: Any, labels: Any, mask: Any, name: str) -> list[int]:
    _check_integers("input_ids", ids)
    _check_integers("labels", labels)
    if not isinstance(mask, list) or len(mask) != len(ids) or not all(item in (0, 1) for item in mask):
        raise RowError(f"{name} must be a 0 or 1 for each of the {len(ids)} input_ids, got {shown(mask)}", "wrong type")
    if len(labels) != len(ids):
        return list(labels)  # `checked_tokens` says so
    return [label if learnt else IGNORE_INDEX for label, learnt in zip(labels, mask, strict=True)]


def checked_tokens(ids: Any, labels: Any, unused: tuple[str, ...] = ()) -> TokenRow:
    """Token ids and their labels, checked.

    Raises:
        RowError: for anything but token ids, and labels that neither repeat them nor are `IGNORE_INDEX`.
    """
    _check_integers("input_ids", ids)
    if labels is not ids:
        _check_integers("labels", labels)
    if not ids or min(ids) < 0 or max(ids) > _LARGEST_ID:
        raise RowError("input_ids must be at least one token id, none of them negative or above 2^31 - 1", "wrong type")
    if len(labels) != len(ids):
        raise RowError(f"labels must be as long as input_ids ({len(ids)}), got {len(labels)}", "wrong type")
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label not in (token, IGNORE_INDEX):
            raise RowError(
                f"labels[{place}] is {shown(label)}: it must repeat input_ids[{place}] = {token} or be {IGNORE_INDEX} "
                "(labels are not shifted)",
                "wrong type",
            )
    return TokenRow(ids, labels, unused)


def _check_integers(name: str, value: Any) -> None:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise RowError(f"{name} must be a list of integers, got {shown(value)}", "wrong type")
