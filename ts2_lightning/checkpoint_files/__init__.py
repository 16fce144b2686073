"""Checkpoints on disk: written as a whole or not at all, checked for damage, read without running anything of them.

In: paths and checkpoint files of any strategy; out: names, checksums, tensors and plain values. It may import only what
every room may. Not here: models, trainers, and the decision which checkpoint a run takes.

disk      names, manifests, and complete checkpoints: published, linked, removed
damage    checksums of the bytes that were written
reading   contents of a checkpoint, one tensor at a time
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
