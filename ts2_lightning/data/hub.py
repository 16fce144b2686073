"""Data sets by name, on the hub or in a folder: the `datasets` library makes Arrow files of them, which we read.

Nothing that comes with a data set is executed: from version 4 on the library runs no loading scripts, and only plain
tables are taken, so nothing is unpickled.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

TABLES = ("arrow", "cache", "csv", "json", "parquet", "text")
"""The loaders of the library that read tables of text and numbers, and only them; `cache` reads what they wrote."""


def is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


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
    import datasets

    try:
        if Path(path).is_dir() and is_saved(Path(path)):
            saved: Any = datasets.load_from_disk(path)
            splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            return _files(splits[_the_split(path, split, list(splits))])
        builder = datasets.load_dataset_builder(path, name=name, revision=revision)
        _check_loader(path, builder)
        builder.download_and_prepare()
        return _files(builder.as_dataset(split=_the_split(path, split, list(builder.info.splits or ()))))
    except UserError:
        raise
    except Exception as error:  # whatever the library, the hub and the files hold in store
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        raise UserError(f"cannot load the data set {path} ({type(cause).__name__}: {reason})") from error


def _check_loader(path: str, builder: Any) -> None:
    package, _, loader = type(builder).__module__.rpartition(".")
    if not package.startswith("datasets.packaged_modules.") or loader not in TABLES:
        raise UserError(
            f"the data set {path} would be read by {type(builder).__module__}; only tables are: {', '.join(TABLES)}"
        )


def _the_split(path: str, split: str | None, known: Collection[str]) -> str:
    if split is None and len(known) == 1:
        return next(iter(known))
    if split is None:
        raise UserError(f"the data set {path} has the splits {', '.join(known)}; name one with split")
    if split not in known:
        raise UserError(
            f"the data set {path} has no split {split!r}; known: {', '.join(known)}{did_you_mean(split, known)}"
        )
    return split


def _files(data: Any) -> list[Path]:
    return [Path(file["filename"]) for file in data.cache_files]
