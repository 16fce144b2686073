"""The sets of rows of a run, and the rows of each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ts2_lightning.data.selection import WHOLE, Selection, held_out
from ts2_lightning.data.sources import HUB, Source, as_sources, resolve_sources
from ts2_lightning.plugins import source_scheme
from ts2_lightning.ranges import Range, check_number
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import SettingError, UserError

SPLITS = ("train", "validation", "test", "predict")

Files = str | list[str | Source] | None
SetsOfFiles = float | Files | dict[str, float | Files]

_FRACTION = Range(above=0, below=1, hint="it is the share of the training rows that is held out")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_TAKEN = {"objective": "what is logged", "tspd": "what is logged", "path": "a part of a source"}


@dataclass(frozen=True)
class RowSets:
    """The sets of rows that the settings of the data name.

    A set has the name of its setting: `train`, `validation`, or `validation.chat` where a split has several sets.

    Attributes:
        settings: split -> its rows: sources, or a fraction of the training rows; or for several sets name -> either. A
            set without rows is left out.
        limits: split -> number of rows that are used of each of its sets, the first ones; None uses all.
        format: format of the rows whose source names none.
        seed: seed of the random choices.
        streaming: whether the training rows are read while they are trained on.

    Example:
        >>> sets = RowSets({"train": "a.jsonl", "validation": {"held": 0.1, "chat": "b.jsonl"}}, {})
        >>> sets.of("validation"), sets.of("test")
        (['validation.held', 'validation.chat'], [])
    """

    settings: Mapping[str, SetsOfFiles]
    limits: Mapping[str, int | None]
    format: str = "auto"
    seed: int = 0
    streaming: bool = False

    @cached_property
    def _rows(self) -> dict[str, float | Files]:
        """Name -> sources or fraction, of every set that has rows."""
        rows_of: dict[str, float | Files] = {}
        for split, settings in self.settings.items():
            if isinstance(settings, dict):
                rows_of |= {f"{split}.{name}": rows for name, rows in settings.items()}
            else:
                rows_of[split] = settings
        return {name: rows for name, rows in rows_of.items() if rows or isinstance(rows, int | float)}

    def of(self, split: str) -> list[str]:
        """The sets of a split, in the order of the settings."""
        return [name for name in self._rows if split_of(name) == split]

    def named(self, name: str) -> list[str]:
        """The sets of a name: one set, or all sets of a split.

        Raises:
            UserError: if there is none.
        """
        names = [name] if name in self._rows else self.of(name)
        if not names:
            hint = did_you_mean(name, self.of(split_of(name)))
            raise SettingError(f"data.{name}", f" is not set: name the files with the rows{hint}")
        return names

    @property
    def fractions(self) -> dict[str, float]:
        """The sets that are held out of the training rows."""
        return {name: float(rows) for name, rows in self._rows.items() if isinstance(rows, int | float)}

    def sources(self, name: str) -> list[Source]:
        """The sources of a set; those of a fraction are the training rows' sources."""
        rows = self._rows.get("train" if name in self.fractions else name)
        return [] if not rows or isinstance(rows, int | float) else as_sources(rows)

    def is_streamed(self, name: str) -> bool:
        """Whether a set consists of streamed rows: all of them, or of a fraction the first few that it has."""
        return self.streaming and (name == "train" or name in self.fractions)

    def selection(self, name: str) -> Selection:
        """The rows of a set."""
        part = held_out(self.fractions).get(name, WHOLE)
        limit = self.limits.get(split_of(name))
        return Selection(tuple(self.sources(name)), self.format, self.seed, part, limit, self.is_streamed(name))

    def prepare(self, name: str) -> None:
        """Let plug-ins write the files of a set, and `datasets` download those of the hub."""
        downloads = not self.is_streamed(name)
        resolve_sources(
            [
                source
                for source in self.sources(name)
                if source_scheme(source.path) or (downloads and source.path.startswith(HUB))
            ]
        )

    # Checks that need no file ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check names, fractions and sources.

        Raises:
            UserError: if one of them cannot be right.
        """
        for split, settings in self.settings.items():
            _check_names(split, list(settings) if isinstance(settings, dict) else [])
        self._check_fractions()
        for name in self._rows:
            times = {source.times for source in self.sources(name)} if name not in self.fractions else set()
            if name != "train" and times - {1}:
                raise SettingError(f"data.{name}", ": times is for data.train; elsewhere every row comes once")
        if self.streaming:
            self._check_streaming()

    def _check_fractions(self) -> None:
        for name, fraction in self.fractions.items():
            check_number(f"data.{name}", self._rows[name], _FRACTION)
            if "train" not in self._rows:
                raise SettingError(f"data.{name}", f" is {fraction} of the training rows, but data.train is not set")
        if sum(self.fractions.values()) >= 1:
            raise UserError(f"{' and '.join(f'data.{name}' for name in self.fractions)} leave nothing of data.train")

    def _check_streaming(self) -> None:
        """Refuse what would need all rows before the first."""
        if self.limits.get("train") is not None:
            raise UserError(
                "data.limit_train: streamed rows have no fixed beginning; set trainer.max_steps, or data.streaming to "
                "false"
            )
        for source in self.sources("train"):
            if source.sample is not None:
                raise UserError(f"{source.path}: a sample is drawn from all rows; leave it out of streamed ones")
        for name in self.fractions:
            if self.limits.get(split_of(name)) is None:
                raise UserError(
                    f"data.{name} is a fraction of streamed rows, of which all would have to be read first; set "
                    f"data.limit_{split_of(name)} to the number of rows that are enough"
                )


def split_of(name: str) -> str:
    """The split that a set belongs to.

    >>> split_of("validation.chat"), split_of("train")
    ('validation', 'train')
    """
    return name.partition(".")[0]


def _check_names(split: str, names: list[str]) -> None:
    """Names become parts of logged names and of files' names."""
    seen: dict[str, str] = {}
    for name in map(str, names):
        if not _NAME.fullmatch(name):
            raise SettingError(f"data.{split}", f": a set's name consists of letters, digits, _ and -, got {name!r}")
        if name.lower() in _TAKEN:
            raise SettingError(f"data.{split}", f": {name!r} is {_TAKEN[name.lower()]}; call the set otherwise")
        if name.lower() in seen:
            raise SettingError(
                f"data.{split}", f": {seen[name.lower()]!r} and {name!r} are the same but for their case"
            )
        seen[name.lower()] = name
