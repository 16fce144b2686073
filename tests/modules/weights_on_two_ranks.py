"""Run on two ranks: every way to shard a model, each given its weights, and what then lies on each rank."""

import functools
import sys
import unittest.mock
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from tests.support.ranks import fork_ranks
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig, weights
from ts2_lightning.modules.language_model import build_language_model
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.weights import load_weights
from ts2_lightning.types import UserError

IDS = torch.arange(12)[None]
RESIZED = 101  # rows of the embedding, of which 4 are new


def local(tensor: Tensor) -> Tensor:
    """What of a tensor this rank holds."""
    held = getattr(tensor, "ds_tensor", tensor)
    return (held.to_local() if isinstance(held, DTensor) else held).detach().clone()


def answer(model: PreTrainedModel, network: nn.Module) -> dict[str, Any]:
    """This rank's shares under the model's own names, and which parameters are one."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {
        "parameters": {name: local(p) for name, p in model.named_parameters()},
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "ties": sorted(sorted(group) for group in names.values() if len(group) > 1),
        "training": model.training,
        "trained": [name for name, p in model.named_parameters() if p.requires_grad],
    }


def network_of(model: PreTrainedModel) -> SFTNetwork:
    return SFTNetwork(model, CrossEntropyLoss(), ChunkedEngine())


def on_meta(config: LanguageModelConfig) -> dict[str, Any]:
    model = build_language_model(config)
    load_weights(model, config)
    found = answer(model, model)
    with torch.no_grad():
        return found | {"logits": model.eval()(input_ids=IDS, use_cache=False).logits}


def fsdp2(config: LanguageModelConfig) -> dict[str, Any]:
    model = build_language_model(config)
    network = network_of(model)
    for layer in model.base_model.layers:
        fully_shard(layer)
    fully_shard(network)
    load_weights(model, config, "cpu")
    found = answer(model, network)
    # After the first forward FSDP2 has looked at all of its parameters again.
    loss = network(batch(), statistics=()).total
    loss.backward()
    return found | {"loss": loss.item(), "ties after": answer(model, network)["ties"]}


def tensor_parallel(config: LanguageModelConfig) -> dict[str, Any]:
    model = build_language_model(config)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.base_model.layers:
        plan = {
            "mlp.up_proj": ColwiseParallel(),
            "mlp.gate_proj": ColwiseParallel(),
            "mlp.down_proj": RowwiseParallel(),
        }
        parallelize_module(layer, mesh, plan)
    load_weights(model, config)
    found = answer(model, model)
    with torch.no_grad():
        return found | {"logits": model.eval()(input_ids=IDS, use_cache=False).logits}


def zero3(config: LanguageModelConfig) -> dict[str, Any]:
    import deepspeed

    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = build_language_model(config, device=None)
        network = network_of(model)
        load_weights(model, config)
        after = nn.Linear(2, 2)  # what is made next is sharded again
    found = answer(model, network) | {"sharded after": hasattr(after.weight, "ds_id")}
    engine, *_ = deepspeed.initialize(model=network, config=settings, dist_init_required=False)
    found["loss"] = engine(batch(), statistics=()).total.item()
    engine.destroy()
    return found


def batch() -> Any:
    return {
        "input_ids": IDS, "attention_mask": torch.ones_like(IDS), "supervised": torch.arange(11), "labels": IDS[0, 1:],
        "positions": torch.arange(1, 12), "lengths": torch.full((11,), 11),
    }  # fmt: skip


def refusal(way: Callable[[LanguageModelConfig], Any], config: LanguageModelConfig) -> str:
    try:
        way(config)
    except UserError as error:
        return str(error)
    return "nothing"


def broken(config: LanguageModelConfig) -> str:
    """Rank 0 meets what nobody foresaw, while the other waits for it."""

    def fail(*args: Any) -> Any:
        raise MemoryError("no more")

    with unittest.mock.patch.object(weights, "load_language_model", fail):
        try:
            load_weights(build_language_model(config), config)
        except Exception as error:
            return repr(error)
    return "nothing"


def main(number: int, directory: Path) -> None:
    """`directory` has model directories; the answers go beside them, one file per rank."""
    dist.init_process_group("gloo")
    import deepspeed

    deepspeed.init_distributed("gloo", dist_init_required=False, verbose=False)
    adapter = AdapterConfig(r=3, head=True)
    ways = {"meta": on_meta, "fsdp2": fsdp2, "tensor parallel": tensor_parallel, "zero3": zero3}
    found: dict[str, Any] = {}
    for name, way in ways.items():
        untied, tied = (functools.partial(LanguageModelConfig, str(directory / kind)) for kind in ("untied", "tied"))
        torch.manual_seed(7)
        found[name] = way(untied(gradient_checkpointing=True))
        if name != "tensor parallel":
            found[f"{name}, tied"] = way(tied())
        if name in ("fsdp2", "zero3"):
            for kind, config in (("untied", untied), ("tied", tied)):
                found[f"{name}, {kind}, resized"] = way(config(resize_embeddings=RESIZED))
        torch.manual_seed(7 + number)  # rank 0 draws
        found[f"{name}, random"] = way(untied(init="random"))
        if name in ("fsdp2", "zero3"):
            found[f"{name}, adapter"] = way(untied(adapter=adapter))
            found[f"{name}, tied, adapter"] = way(tied(adapter=adapter))
        found[f"{name}, a weight is missing"] = refusal(way, LanguageModelConfig(str(directory / "incomplete")))
        found[f"{name}, ties differ"] = refusal(way, LanguageModelConfig(str(directory / "untied in fact")))
    found["broken"] = broken(LanguageModelConfig(str(directory / "untied")))
    torch.save(found, directory / f"rank{number}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fork_ranks(main, Path(sys.argv[1]))
