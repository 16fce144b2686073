"""Rows that cannot be trained on: counted by kind, named, and an error if too many; never dropped silently."""

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ts2_lightning.types import RejectKind, UserError

_NAMED = 3  # rows that an error names


class Reject(NamedTuple):
    """A row that cannot be trained on."""

    origin: str  # as of a row: "file:line"
    kind: RejectKind
    reason: str


class Rejects:
    """What was wrong with the rows of a split, and how much of it is tolerated.

    Rows that a format leaves out on purpose (kind `left out`) are counted by kind, but are not bad: they are neither
    listed nor compared with `max_share`.

    Args:
        max_share: share of the rows that may be bad, 0 to 1; 0 tolerates none.
        file: where `finish` lists the bad rows, one JSON object a line; None for nowhere.

    Attributes:
        by_kind: number of rows of each kind.
        bad: the bad rows; of an intolerant one only the first few.

    Example:
        >>> rejects = Rejects()
        >>> rejects.add(Reject("rows.jsonl:7", "empty answer", "message 2: the assistant's answer is empty"))
        >>> rejects.finish(total=50)
        Traceback (most recent call last):
        ts2_lightning.types.UserError: rows.jsonl:7: message 2: the assistant's answer is empty; 1 of 50 rows is bad \
(1 empty answer); mend it, or let data.max_rejects, the share of bad rows to leave out, be at least 0.02
    """

    def __init__(self, max_share: float = 0.0, file: Path | None = None) -> None:
        self.max_share = max_share
        self.file = file
        self.by_kind: Counter[str] = Counter()
        self.bad: list[Reject] = []

    def add(self, reject: Reject) -> None:
        """Take a row down."""
        self.by_kind[reject.kind] += 1
        if reject.kind != "left out" and (self.max_share > 0 or len(self.bad) < _NAMED):
            self.bad.append(reject)

    def __len__(self) -> int:
        """Number of bad rows."""
        return sum(count for kind, count in self.by_kind.items() if kind != "left out")

    def summary(self) -> str:
        """The numbers of bad rows, the most frequent kind first: `3 empty answer, 1 malformed JSON`."""
        return ", ".join(f"{count} {kind}" for kind, count in self.by_kind.most_common() if kind != "left out")

    def finish(self, total: int) -> None:
        """Judge, and list the bad rows, if there are any, in the file.

        Args:
            total: number of rows that were read, good and bad.

        Raises:
            UserError: naming the first bad rows, if they are more than `max_share` of all.
        """
        share = len(self) / max(total, 1)
        if share > self.max_share:
            named = " | ".join(f"{reject.origin}: {reject.reason}" for reject in self.bad[:_NAMED])
            are, mend = ("is", "mend it") if len(self) == 1 else ("are", "mend them")
            raise UserError(
                f"{named}; {len(self)} of {total} rows {are} bad ({self.summary()}); {mend}, or let data.max_rejects, "
                f"the share of bad rows to leave out, be at least {_rounded_up(share)}"
            )
        if self.file is not None and self.bad:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in self.bad)
            self.file.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _rounded_up(share: float) -> str:
    """The share with two digits, or as many as it takes for it not to be less."""
    texts = (f"{share:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if float(text) >= share)
