"""Checkpoints on disk, whoever reads or writes them.

disk      complete or not there: names, manifests, replacing, removing
damage    whether the bytes are those that were written
reading   what a checkpoint holds, a tensor at a time, without running anything of it
"""

from ts2_lightning.checkpoint_files.damage import block_checksums, damage_of
from ts2_lightning.checkpoint_files.disk import (
    MANIFEST,
    SUFFIX,
    hidden,
    is_complete,
    is_deepspeed,
    is_distributed,
    link,
    publish,
    read_manifest,
    remove,
    remove_remains,
    sync,
    write_manifest,
)

__all__ = [
    "MANIFEST",
    "SUFFIX",
    "block_checksums",
    "damage_of",
    "hidden",
    "is_complete",
    "is_deepspeed",
    "is_distributed",
    "link",
    "publish",
    "read_manifest",
    "remove",
    "remove_remains",
    "sync",
    "write_manifest",
]
