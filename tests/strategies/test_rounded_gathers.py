"""FSDP2 gathers weights that autocast rounds as it rounds them, and nothing of the gradients changes."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from tests.modules.architectures import random_model, uneven_batch
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import TS2Loss
from ts2_lightning.modules.adapters import add_adapter
from ts2_lightning.modules.config import AdapterConfig
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.sharding import shard

ROUNDED = {
    "llama": {"self_attn", "mlp"},
    "llama, tied": {"self_attn", "mlp"},
    "qwen3": {"mlp"},  # attention has norms of its own
    "gpt_neox": {"attention", "mlp"},  # beside each other, with biases
    "llama with an adapter": {"self_attn", "mlp"},
}
"""The parts of a layer whose linear weights come in bfloat16; all other weights come in float32."""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """Of one rank, which casts as many would."""
    dist.init_process_group("gloo", f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    dist.destroy_process_group()


def network_of(name: str, checkpointing: bool) -> SFTNetwork:
    model = random_model(name.removesuffix(" with an adapter")).float()
    if name.endswith("adapter"):
        add_adapter(model, AdapterConfig(r=3))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return SFTNetwork(model, TS2Loss(), ChunkedEngine(3))


def gradients(network: SFTNetwork) -> dict[str, Tensor]:
    """Of two micro-batches, in autocast."""
    for seed in (0, 1):
        with torch.autocast("cpu", torch.bfloat16):
            total = network(uneven_batch(seed)[0]).total
        total.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", ROUNDED)
def test_the_gradients_are_autocasts_own(name: str, checkpointing: bool, mesh: DeviceMesh) -> None:
    whole = network_of(name, checkpointing)
    sharded = copy.deepcopy(whole)
    shard(sharded, mesh, autocast=True)
    dtypes: dict[str, torch.dtype] = {}

    def look(module: nn.Module, *_: object) -> None:
        own = module.named_parameters(recurse=False)
        dtypes.update({f"{names[module]}.{key}": weight.dtype for key, weight in own})

    names = {module: name for name, module in sharded.named_modules()}
    for module in sharded.modules():
        module.register_forward_pre_hook(look)
    found, wanted = gradients(sharded), gradients(whole)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        assert found[key].dtype == torch.float32
        assert torch.equal(found[key], gradient), key
    rounded = {key for key, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert {key.split(".layers.")[1].split(".")[1] for key in rounded} == ROUNDED[name]
    for key in dtypes.keys() - rounded:
        assert not any(f".{part}." in key for part in ROUNDED[name]), key
