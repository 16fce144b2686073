"""Rows that cannot be trained on: counted by kind, named, and an error if too many; never dropped silently."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple

from ts2_lightning.data.files import writable
from ts2_lightning.types import RejectKind, UserError

_NAMED = 3  # rows that an error names
_ENOUGH = 1000  # rows of which a share is judged while more are to come


class Reject(NamedTuple):
    """A row that cannot be trained on."""

    origin: str  # "file:line", see `SourceRow`
    kind: RejectKind
    reason: str


class BadRowsError(UserError):
    """The error for more bad rows than are tolerated.

    Attributes:
        first: first of the bad rows.
    """

    def __init__(self, message: str, first: Reject) -> None:
        super().__init__(message)
        self.first = first


class Rejects:
    """The rejected rows of a split, and the share of them that is tolerated.

    Rows that a format leaves out on purpose (kind `left out`) are counted by kind, but are not bad: they are neither
    listed nor compared with `max_share`.

    Args:
        max_share: share of the rows that may be bad, 0 to 1; 0 tolerates none.
        file: file in which `finish` lists the bad rows, one JSON object a line; None for no list.

    Attributes:
        by_kind: number of rows of each kind.
        bad: bad rows; if none is tolerated, only the first few.

    Example:
        >>> rejects = Rejects()
        >>> rejects.add(Reject("rows.jsonl:7", "empty answer", "message 2: the assistant's answer is empty"))
        >>> rejects.finish(total=50)
        Traceback (most recent call last):
        ts2_lightning.data.rejects.BadRowsError: rows.jsonl:7: message 2: the assistant's answer is empty; 1 of 50 \
rows is bad (1 empty answer); mend it, or let data.max_rejects, the share of bad rows to leave out, be at least 0.02
    """

    def __init__(self, max_share: float = 0.0, file: Path | None = None) -> None:
        self.max_share = max_share
        self.file = file
        self.by_kind: Counter[str] = Counter()
        self.bad: list[Reject] = []

    def add(self, reject: Reject) -> None:
        """Record a rejected row."""
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
        self.judge(total)
        if self.file is not None and self.bad:
            self._list(self.file, "w", self.bad)

    def go_on(self, rejects: Sequence[Reject], total: int) -> None:
        """Record rejected rows while more may come: they are appended to the file, and only the first few are kept.

        A share above `max_share` may be chance as long as the rows are few. So it is judged from 1,000 rows on, and
        only if the bad ones are five standard deviations more than are tolerated; without tolerance, at once.

        Args:
            rejects: bad rows.
            total: number of rows that were read so far, good and bad.

        Raises:
            UserError: see `judge`.
        """
        for reject in rejects:
            self.by_kind[reject.kind] += 1
        self.bad += rejects[: max(_NAMED - len(self.bad), 0)]
        if self.file is not None and rejects and self.max_share > 0:
            self._list(self.file, "a", rejects)
        expected = self.max_share * total
        by_chance = 5 * math.sqrt(expected * (1 - self.max_share))
        if self.max_share == 0 or (total >= _ENOUGH and len(self) > expected + by_chance):
            self.judge(total, so_far=True)

    def judge(self, total: int, so_far: bool = False) -> None:
        """Compare the share of bad rows with the tolerated one.

        Args:
            total: number of rows that were read, good and bad.
            so_far: whether more rows may come, so that the share to tolerate is still unknown.

        Raises:
            UserError: naming the first bad rows, if they are more than `max_share` of all.
        """
        share = len(self) / max(total, 1)
        if share > self.max_share:
            named = " | ".join(f"{reject.origin}: {reject.reason}" for reject in self.bad[:_NAMED])
            are, mend = ("is", "mend it") if len(self) == 1 else ("are", "mend them")
            rows = f"the first {total} rows" if so_far else f"{total} rows"
            enough = f"above {self.max_share:g}" if so_far else f"at least {_rounded_up(share)}"
            raise BadRowsError(
                f"{named}; {len(self)} of {rows} {are} bad ({self.summary()}); {mend}, or let data.max_rejects, the "
                f"share of bad rows to leave out, be {enough}",
                self.bad[0],
            )

    @staticmethod
    def _list(file: Path, mode: Literal["w", "a"], rejects: Sequence[Reject]) -> None:
        with writable(file, "let it be written, since bad rows are listed there"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, mode, encoding="utf-8", errors="backslashreplace") as lines:
                lines.writelines(json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in rejects)


def _rounded_up(share: float) -> str:
    """The share with two digits, and no less.

    >>> _rounded_up(1 / 50), _rounded_up(1 / 30)
    ('0.02', '0.034')
    """
    nearest = Decimal(f"{share:.2g}")
    enough = nearest if float(nearest) >= share else nearest + Decimal(1).scaleb(nearest.adjusted() - 1)
    return f"{float(enough):g}"
