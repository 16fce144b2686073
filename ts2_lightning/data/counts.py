"""Numbers of rows that were read, kept and left out, and of their tokens."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from ts2_lightning.data.formats.values import named
from ts2_lightning.types import RejectKind

_COUNTED_FIELDS = 200  # names of unused fields that are counted one by one
_LISTED_FIELDS = 20  # names of unused fields that a summary lists


@dataclass(frozen=True)
class Counts:
    """Numbers of rows, turns and tokens; those of several chunks or ranks are added with `+`.

    `read` is `kept`, `dropped` and the rejected rows together. An `EncodedRows` holds one entry for each text of a kept
    row, so it has `kept + unrolled` entries.

    Attributes:
        read: rows that were read.
        kept: rows with at least one text that is trained on.
        dropped: rows longer than `max_length`, with `overlong: drop`.
        unrolled: texts of the kept rows beyond the first of each.
        truncated: kept rows that were cut.
        turns_lost: turns of the assistant in kept rows that are not supervised because a text was too long.
        masked: turns of the assistant in kept rows that the rows mark as not to be learnt.
        thoughts: kept rows whose last learnt turn has a thought.
        unused: field -> number of kept rows in which the field is filled, but not used.
        rejected: kind -> number of rejected rows.
        weighted: kept rows whose weight is not 1.
        tokens: tokens of the kept rows.
        supervised_tokens: tokens of the kept rows that are learnt.

    Example:
        >>> (Counts(read=3, kept=2, rejected={"other": 1}) + Counts(read=1, kept=1)).summary()
        '3 rows, 0 tokens, 0 supervised'
    """

    read: int = 0
    kept: int = 0
    dropped: int = 0
    unrolled: int = 0
    truncated: int = 0
    turns_lost: int = 0
    masked: int = 0
    thoughts: int = 0
    unused: dict[str, int] = field(default_factory=dict)
    rejected: dict[RejectKind, int] = field(default_factory=dict)
    weighted: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.type is int}
        unused = most_frequent(Counter(self.unused) + Counter(other.unused))
        return Counts(**sums, unused=unused, rejected=dict(Counter(self.rejected) + Counter(other.rejected)))

    def summary(self) -> str:
        """The numbers in words; those that are usually 0 only where they are not."""
        parts = [f"{self.kept} rows", f"{self.tokens} tokens", f"{self.supervised_tokens} supervised"]
        if self.unrolled:
            parts.append(f"{self.kept + self.unrolled} texts, as the template writes a last turn otherwise")
        if self.thoughts:
            parts.append(f"{self.thoughts} rows with a thought before the last answer")
        if self.masked:
            parts.append(f"{self.masked} turns masked by their rows")
        if self.weighted:
            parts.append(f"{self.weighted} rows with a weight other than 1")
        if self.truncated:
            parts.append(f"{self.truncated} rows truncated")
        if self.turns_lost:
            where = "in them not supervised any more" if self.truncated else "dropped with their texts as too long"
            parts.append(f"{self.turns_lost} turns of the assistant {where}")
        if self.dropped:
            parts.append(f"{self.dropped} rows dropped as too long")
        if left_out := self.rejected.get("left out"):
            parts.append(f"{left_out} rows left out by their format")
        if self.unused:
            parts.append(f"fields not used: {unused_fields(self.unused)}")
        return ", ".join(parts)

    def why_empty(self) -> str:
        """The reason why no row is left, in words."""
        if self.dropped == self.read:
            return f"all {self.read} rows are longer than max_length" if self.read else "no rows"
        reasons = [("longer than max_length", self.dropped), *self.rejected.items()]
        listed = ", ".join(f"{number} {reason}" for reason, number in reasons if number)
        return f"none of {self.read} rows left ({listed})"


def most_frequent(names: Counter[str]) -> dict[str, int]:
    """Numbers of names, of which those beyond the 200 most frequent are counted together, as `...`.

    >>> most_frequent(Counter(id=2)), len(most_frequent(Counter(map(str, range(1000)))))
    ({'id': 2}, 201)
    """
    if len(names) <= _COUNTED_FIELDS + 1:
        return dict(names)
    others = names.pop("...", 0)
    kept = dict(names.most_common(_COUNTED_FIELDS))
    return {**kept, "...": others + names.total() - sum(kept.values())}


def unused_fields(unused: Mapping[str, int]) -> str:
    """The fields that are not used, the most frequent first, each with the number of rows in which it is filled.

    >>> unused_fields({"id": 3, "turns.name": 5})
    'turns.name (5), id (3)'
    """
    frequent = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(frequent) - _LISTED_FIELDS} more" if len(frequent) > _LISTED_FIELDS else ""
    return ", ".join(f"{named([name])} ({rows:,})" for name, rows in frequent[:_LISTED_FIELDS]) + more
