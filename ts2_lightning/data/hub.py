"""Data sets by name, on the hub or in a folder: the `datasets` library makes Arrow files of them, which we read; or it
fetches their rows while they are read, and nothing is kept on the disk.

Nothing that comes with a data set is executed: from version 4 on the library runs no loading scripts, and only plain
tables are taken, so nothing is unpickled.
"""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ts2_lightning.data.files import reason_of
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

TABLES = ("arrow", "cache", "csv", "json", "parquet", "text")
"""The loaders of the library that read tables of text and numbers, and only them; `cache` reads what they wrote."""


_BATCH = 64  # rows that are taken from the library at once

T = TypeVar("T")


class Shard(NamedTuple):
    """A part of a data set, usually one of its files, whose rows are fetched while they are read.

    Attributes:
        name: name of the part, for messages.
        data: its `datasets.IterableDataset`.
        rows: number of its rows, about; None if the data set does not say.
        loader: name of the loader that reads it, one of `TABLES`.
    """

    name: str
    data: Any
    rows: float | None
    loader: str = ""

    def __str__(self) -> str:
        return self.name

    def read(self) -> Iterator[dict[str, Any]]:
        """The fields of each row.

        Raises:
            UserError: naming the part, if it cannot be fetched or is broken.
        """
        # In batches, since the library deals single rows to the workers of a DataLoader, each of which reads all here.
        batches = self.data.iter(batch_size=_BATCH)
        while (batch := _one_line_errors(self.name, lambda: next(batches, None))) is not None:
            columns = list(batch)
            _check_columns(self.name, self.loader, columns)
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*batch.values(), strict=True))


def is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with `save_to_disk`."""
    return any(os.path.isfile(folder / name) for name in ("dataset_dict.json", "state.json"))


def data_set_files(
    path: str, name: str | None = None, split: str | None = None, revision: str | None = None
) -> list[Path]:
    """The Arrow files that hold one split of a data set, in order; downloaded and converted on first use.

    Args:
        path: `org/name` on the hub, or a folder: one of data files, laid out as on the hub, or one of `save_to_disk`.
        name: the configuration, if there are several.
        split: the split, if there are several.
        revision: commit, tag or branch on the hub; a commit is never downloaded twice.

    Raises:
        UserError: in one line, if there is no such data set, configuration or split, or it is more than tables.
    """

    def load() -> list[Path]:
        if Path(path).is_dir() and is_saved(Path(path)):
            return _saved_files(path, split)
        builder, loader = _builder(path, name, revision)
        builder.download_and_prepare()
        data = builder.as_dataset(split=_the_split(path, split, list(builder.info.splits or ())))
        _check_columns(path, loader, data.column_names)
        return _files(data)

    return _one_line_errors(path, load)


def data_set_shards(
    path: str, name: str | None = None, split: str | None = None, revision: str | None = None
) -> list[Path | Shard]:
    """The parts of one split of a data set, in order, of which nothing is downloaded yet.

    Those of a folder of `save_to_disk` are its files. Arguments and errors are those of `data_set_files`.
    """

    def load() -> list[Path | Shard]:
        if Path(path).is_dir() and is_saved(Path(path)):
            return [*_saved_files(path, split)]
        builder, loader = _builder(path, name, revision)
        splits = builder.as_streaming_dataset()
        chosen = _the_split(path, split, list(splits))
        about = (builder.info.splits or {}).get(chosen)
        data = splits[chosen]
        count = data.num_shards
        rows = about.num_examples / count if about and about.num_examples else None
        whole = f"{path}, {chosen}"
        names = [whole] if count == 1 else [f"{whole}, part {number}" for number in range(1, count + 1)]
        return [Shard(names[index], data.shard(count, index), rows, loader) for index in range(count)]

    return _one_line_errors(path, load)


def _one_line_errors(data_set: str, function: Callable[[], T]) -> T:
    """Call a function; any error of the library, the hub or the files becomes one line."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise UserError(f"cannot load the data set {data_set} ({type(cause).__name__}: {reason_of(cause)})") from error


def _saved_files(path: str, split: str | None) -> list[Path]:
    import datasets

    saved: Any = datasets.load_from_disk(path)
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    return _files(splits[_the_split(path, split, list(splits))])


def _check_columns(data_set: str, loader: str, columns: Collection[str]) -> None:
    """Refuse a CSV with a column twice, of which the library calls the second `NAME.1`; it refuses other tables."""
    for column in columns if loader == "csv" else ():
        first, _, number = column.rpartition(".")
        if number.isdigit() and first in columns:
            raise UserError(
                f"the data set {data_set}: the column {first!r} comes twice ({column!r} is the name that the second is "
                "given); write each once, under its own name"
            )


def _builder(path: str, name: str | None, revision: str | None) -> tuple[Any, str]:
    """The builder of a data set, and the name of its loader."""
    import datasets

    builder = datasets.load_dataset_builder(path, name=name, revision=revision)
    package, _, loader = type(builder).__module__.rpartition(".")
    if not package.startswith("datasets.packaged_modules.") or loader not in TABLES:
        raise UserError(
            f"the data set {path} would be read by {type(builder).__module__}; only tables are: {', '.join(TABLES)}"
        )
    return builder, loader


def _the_split(path: str, split: str | None, splits: Collection[str]) -> str:
    if split is None and len(splits) == 1:
        return next(iter(splits))
    if split is None:
        raise UserError(f"the data set {path} has the splits {', '.join(splits)}; name one with split")
    if split not in splits:
        raise UserError(
            f"the data set {path} has no split {split!r}; known: {', '.join(splits)}{did_you_mean(split, splits)}"
        )
    return split


def _files(data: Any) -> list[Path]:
    return [Path(file["filename"]) for file in data.cache_files]
