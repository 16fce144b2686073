"""Two steps of `TokenLossMixin` on two gloo ranks: `two_ranks.py STRATEGY WORLD OUT`; a process of its own.

Sixteen rows make the first step, in four micro-batches on each rank, and four rows the second, in one.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState

from tests.support.ranks import fork_ranks
from ts2_lightning.losses import CrossEntropyLoss, GEMLoss, TS2Loss

ROWS = [*range(16), *range(4)]
VALIDATED = range(7)
LOSSES = {"ts2": TS2Loss, "gem": GEMLoss}
CASES = [("ts2", "tied"), ("gem", "untied"), ("ts2", "module")]


def zero(stage: int) -> dict[str, Any]:
    """Settings of DeepSpeed; weights of any size are sharded."""
    sharded = {"stage": stage, "stage3_param_persistence_threshold": 0}
    return {
        "zero_optimization": sharded, "zero_allow_untested_optimizer": True, "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    }  # fmt: skip


def rank(number: int, strategy: str, world: Path, out: Path) -> None:
    from tests.integrations.test_transformers import adapted
    from tests.integrations.trainings import load, train

    changed: dict[str, Any] = {"per_device_train_batch_size": 2}
    if strategy != "ddp":
        # Accelerate knows DeepSpeed's ranks on GPUs; on CPUs it takes each for the only one.
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_CPU)  # type: ignore[assignment]
        changed |= {"use_cpu": False, "deepspeed": zero(int(strategy[-1]))}
    outcome: dict[str, Any] = {}
    for loss, model in CASES:
        found = train(world, out, LOSSES[loss](), load(world / model), ROWS, validated=VALIDATED, changed=dict(changed))
        assert found.pop("trainer").accelerator.num_processes == 2
        outcome[f"{loss}-{model}"] = found
    if strategy == "ddp":
        outcome["adapter"] = train(world, out, CrossEntropyLoss(), adapted(world, True), ROWS, changed=changed)
        del outcome["adapter"]["trainer"]
    torch.save(outcome, out / f"rank{number}.pt")


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    fork_ranks(rank, sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
