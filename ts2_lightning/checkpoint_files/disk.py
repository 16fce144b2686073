"""Checkpoints on disk: present as a whole, or absent.

A checkpoint (a file, or the directory of a sharded strategy) is written under a hidden name, brought to the disk, and
renamed to `step-000123.ckpt`, a name that no other checkpoint has. `last.ckpt` and `best.ckpt` are links to such names
and are replaced in one step too. So there is no moment at which the newest complete checkpoint has no name.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SUFFIX = ".ckpt"


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written, or copied, to its end.

    A file is a zip archive, whose table of contents comes last. A directory of ours lists its files and their sizes;
    of others the files that their formats promise must be there.
    """
    if not checkpoint.is_dir():
        return checkpoint.is_file() and _is_archive(checkpoint)
    manifest = read_manifest(checkpoint)
    if manifest is not None:
        return all(_size(checkpoint / name) == size for name, size in manifest["files"].items())
    return _has_distributed_files(checkpoint) or _has_deepspeed_files(checkpoint)


def is_distributed(checkpoint: Path) -> bool:
    """Whether it is a directory of torch.distributed.checkpoint, as FSDP writes it."""
    return (checkpoint / ".metadata").is_file()


def is_deepspeed(checkpoint: Path) -> bool:
    """Whether it is a directory of DeepSpeed."""
    return checkpoint.is_dir() and (checkpoint / "latest").is_file()


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest that `write_manifest` wrote; None for a file, or a directory that is not ours."""
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # cut short by a copy
        return {"files": {MANIFEST: -1}}
    return manifest


def write_manifest(checkpoint: Path, world_size: int, checksums: Mapping[str, list[int]]) -> None:
    """Lists the files of a directory, once all ranks have written theirs.

    Args:
        checkpoint: directory of the checkpoint.
        world_size: number of ranks that wrote it.
        checksums: XXH3 of each block of each file, as `damage.block_checksums` gives them.
    """
    files = {str(file.relative_to(checkpoint)): _size(file) for file in files_in(checkpoint)}
    manifest = {"world_size": world_size, "files": files, "xxh3_64": dict(sorted(checksums.items()))}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest) + "\n")


def files_in(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint's directory, in the order of their names, without its manifest."""
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file())
    return [file for file in files if file != checkpoint / MANIFEST]


def sync(path: Path) -> None:
    """Brings a file, or a directory with all that is in it, to the disk."""
    entries = [path, *path.rglob("*")] if path.is_dir() else [path]
    for entry in entries:
        if entry.is_dir() and os.name != "posix":
            continue  # only there a directory can be opened
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish(partial: Path, place: Path) -> None:
    """Gives a complete checkpoint its name.

    A checkpoint of that name is there only where a run went back and did its steps again, and then the one that it went
    back to is there too.
    """
    if place.is_dir():
        remove(place)  # no rename replaces a directory that is not empty
    os.replace(partial, place)
    _sync_directory(place.parent)


def link(name: Path, target: Path) -> None:
    """Makes `name` a link to its neighbour `target`, in one step."""
    beside = hidden(name, "link")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target.name)
    os.replace(beside, name)
    _sync_directory(name.parent)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint: first its name, then its content, so that a part of it never passes for the whole."""
    nameless = hidden(checkpoint, "old")
    _delete(nameless)
    os.replace(checkpoint, nameless)
    _delete(nameless)


def remove_remains(directory: Path) -> None:
    """Removes the half-written and half-removed checkpoints of a killed run."""
    for path in directory.glob(f".*{SUFFIX}.*"):
        _delete(path)


def hidden(place: Path, why: str) -> Path:
    """The hidden name beside a checkpoint's."""
    return place.with_name(f".{place.name}.{why}")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _is_archive(file: Path) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # at the end there is what might be a table of contents
        return False


def _has_distributed_files(checkpoint: Path) -> bool:
    """Lightning writes `meta.pt` last; which shards there are is in a pickle, which is not for us to run."""
    return is_distributed(checkpoint) and (checkpoint / "meta.pt").is_file() and any(checkpoint.glob("*.distcp"))


def _has_deepspeed_files(checkpoint: Path) -> bool:
    """DeepSpeed's rank 0 writes `latest` last; each rank has a file with its share of the optimizer's state."""
    if not is_deepspeed(checkpoint):
        return False
    states = checkpoint / (checkpoint / "latest").read_text().strip()
    matches = (re.search(r"zero_pp_rank_(\d+)_.*optim_states\.pt$", file.name) for file in states.glob("*.pt"))
    ranks = sorted(int(match[1]) for match in matches if match)
    return any(states.glob("*model_states.pt")) and ranks == list(range(len(ranks)))
