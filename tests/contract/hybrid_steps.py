"""The steps of `steps.py` on four gloo ranks, two and two: each pair has a copy of what FSDP2 shards.

    hybrid_steps.py WORLD OUT

One launch runs all cases, as imports cost most of the time. The ranks are forked, and each writes what it found.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tests.contract import steps
from tests.contract.steps import Case
from tests.planning.ranks import Count
from tests.support.ranks import fork_ranks
from ts2_lightning.callbacks import Checkpoints
from ts2_lightning.strategies import FSDP2

RANKS, MICRO_BATCH = 4, 2  # so that a step of sixteen rows has two micro-batches
SHARDED, TO_A_FILE = Case("ts2", "untied", "none"), Case("gem", "tied", "packed", "bf16-mixed")


class Crossings:
    """Counts the sums of this rank with the one that has a copy of its shard, in place of torch's `all_reduce`."""

    def __init__(self, number: int) -> None:
        self.copies = [number % 2, number % 2 + 2]
        self.count = 0
        self.all_reduce = distributed.all_reduce

    def __call__(self, tensor: Any, op: Any = distributed.ReduceOp.SUM, group: Any = None, **options: Any) -> Any:
        self.count += group is not None and distributed.get_process_group_ranks(group) == self.copies
        return self.all_reduce(tensor, op, group, **options)


def rank(number: int, world: Path, out: Path) -> None:
    sharded = partial(steps.run, SHARDED, world, MICRO_BATCH, ranks=RANKS)
    to_a_file = partial(steps.run, TO_A_FILE, world, MICRO_BATCH, ranks=RANKS)
    one_file = partial(FSDP2, save_distributed_checkpoint=False, process_group_backend="gloo")
    counted, crossings = Count(), Crossings(number)
    distributed.all_reduce = crossings  # type: ignore[assignment]
    keeping = [Checkpoints(str(out / "sharded"), every_n_steps=1, keep_last=2), counted]
    found = {"sharded": sharded(steps.rehearsal("fsdp2_hybrid"), callbacks=keeping)}
    distributed.all_reduce = crossings.all_reduce
    first = [out / name / "step-000001.ckpt" for name in ("sharded", "to a file")]
    found["sharded resumed"] = sharded(steps.rehearsal("fsdp2_hybrid"), checkpoint=first[0])
    keeping = [Checkpoints(str(out / "to a file"), every_n_steps=1, keep_last=2)]
    found["to a file"] = to_a_file(one_file(shard_size=2), callbacks=keeping)
    found["to a file resumed"] = to_a_file(one_file(), checkpoint=first[1])  # sharded over all ranks now
    found["skipped"] = steps.run(
        steps.POISONED_CASE, world, MICRO_BATCH, steps.rehearsal("fsdp2_hybrid"), RANKS, "skip", steps.POISONED_ROW
    )
    torch.save({**found, "held": counted.found, "crossings": crossings.count}, out / f"rank{number}.pt")


if __name__ == "__main__":
    fork_ranks(rank, Path(sys.argv[1]), Path(sys.argv[2]), ranks=RANKS)
