"""Run on two ranks: FSDP2 on a mixture with adapted experts and the loss of its routers.

    experts_on_two_ranks.py OUT

Each rank has the same rows, so that the mean over ranks, which FSDP2 makes of gradients, is the gradient of one.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests.modules.architectures import MIXTURES, random_model
from tests.modules.test_adapters import speak
from tests.modules.test_router import LENGTHS, rows
from tests.support.ranks import fork_ranks
from ts2_lightning.data.collate import collate
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import AdapterConfig
from ts2_lightning.modules.adapters import add_adapter
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.sharding import shard

WAYS = {"whole": None, "adapted": AdapterConfig(r=3, target_parameters="all-experts")}


def network_of(adapter: AdapterConfig | None, checkpointing: bool) -> SFTNetwork:
    torch.manual_seed(0)
    model = random_model(MIXTURES["qwen3_moe"])
    if adapter is not None:
        add_adapter(model, adapter)
        speak(model)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return SFTNetwork(model.train(), CrossEntropyLoss(), ChunkedEngine(3), 0.5)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """Whole ones, after two steps of accumulation."""
    for _ in range(2):
        network(collate(rows(), range(len(LENGTHS)), 1, 0), ()).total.backward()
    named = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in named.items()}


def main(number: int, out: Path) -> None:
    """The gradients of each way, sharded and not."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    answers = {}
    for name, adapter in WAYS.items():
        for checkpointing in (False, True):
            network = network_of(adapter, checkpointing)
            shard(network, mesh)
            answers[name, checkpointing] = (gradients(network), gradients(network_of(adapter, checkpointing)))
    torch.save(answers, out / f"{number}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    fork_ranks(main, Path(sys.argv[1]))
