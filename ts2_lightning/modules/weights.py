"""Weights for models that are sharded over ranks: rank 0 reads or draws them, every rank keeps its share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from ts2_lightning.modules.buffers import initialize_buffers, persistent_buffers
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model, stored_dtype
from ts2_lightning.types import SharedError, UserError

Dtypes = dict[str, torch.dtype]


def load_weights(model: PreTrainedModel, config: LanguageModelConfig, device: torch.device | str | None = None) -> None:
    """Gives a model that `build_language_model` made, and that may have been sharded since, its weights and buffers.

    Every rank must call. Rank 0 maps the checkpoint's files into memory, in their own dtype, or draws the weights, just
    as a single process would. Then one tensor at a time goes to all ranks, each of which keeps its share. Parameters
    stay the objects that they are, so what is tied stays tied, and optimizers and wrappers may hold them.

    Args:
        model: on meta, on a device, with DTensors (FSDP2, tensor parallelism), or sharded by ZeRO-3, also inside of
            `deepspeed.zero.Init`.
        config: that it was built from.
        device: Device of the rank, for what is on meta, and on which tensors travel. Default: the CPU.

    Raises:
        UserError: the weights cannot be loaded, or do not fit; the same on every rank.
    """
    device = torch.device(device or "cpu")
    with _outside_of_zero():
        whole, dtypes = _read_on_rank_0(model, config)
        for parameter in model.parameters():
            if parameter.is_meta:
                _materialise(parameter, device)
        initialize_buffers(model, device)
        for name, tensor in _tensors(model).items():
            _receive(tensor, whole.pop(name, None), dtypes[name], device)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, each tensor once."""
    return {**dict(model.named_parameters()), **persistent_buffers(model)}


# -- rank 0


def _read_on_rank_0(model: PreTrainedModel, config: LanguageModelConfig) -> tuple[dict[str, Tensor], Dtypes]:
    """All tensors on rank 0, none elsewhere; their dtypes everywhere."""
    whole: dict[str, Tensor] = {}
    failure: Exception | None = None
    if _rank() == 0:
        try:
            whole = _whole_tensors(model, config)
        except UserError as error:
            failure = SharedError(str(error))
        except Exception as error:  # whatever it is, the others wait to be told
            failure = error
    told = failure if failure is None or isinstance(failure, SharedError) else RuntimeError(f"on rank 0: {failure!r}")
    answer: list[Any] = [told, {name: tensor.dtype for name, tensor in whole.items()}]
    if _is_distributed():
        dist.broadcast_object_list(answer, src=0)
    if failure or answer[0]:
        raise failure or answer[0]
    return whole, answer[1]


def _whole_tensors(model: PreTrainedModel, config: LanguageModelConfig) -> dict[str, Tensor]:
    """Every tensor of a sharded model, as a process of its own has it: from a model that is let go of then."""
    dtype = stored_dtype(config) if config.init == "pretrained" else None
    source = load_language_model(replace(config, gradient_checkpointing=False), dtype)
    if _ties(source) != _ties(model):
        name = min(_ties(source).keys() ^ _ties(model).keys())
        raise UserError(
            f"model.lm.path: in {config.path!r} config.json ties {name}, but the weights hold it apart; set "
            "tie_word_embeddings to false there"
        )
    return {name: tensor.detach() for name, tensor in _tensors(source).items()}


def _ties(model: nn.Module) -> dict[str, str]:
    """The names that a parameter has beside its first, and the first."""
    first: dict[int, str] = {}
    named = [(name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False)]
    return {name: other for name, other in named if name != other}


# -- every rank


def _materialise(parameter: nn.Parameter, device: torch.device) -> None:
    """Gives a parameter on meta memory, and leaves it the object that it is."""
    new = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
    new.__dict__.update(parameter.__dict__)
    torch.utils.swap_tensors(parameter, new)


@torch.no_grad()
def _receive(tensor: Tensor, whole: Tensor | None, dtype: torch.dtype, device: torch.device) -> None:
    """Fills a tensor, or this rank's shard of it, with what rank 0 has whole."""
    if hasattr(tensor, "ds_id"):
        _receive_partition(tensor, whole)
        return
    whole = torch.empty(tensor.shape, dtype=dtype, device=device) if whole is None else whole.to(device).contiguous()
    if _is_distributed():
        dist.broadcast(whole, src=0)
    if isinstance(tensor, DTensor):
        shard = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
        tensor.to_local().copy_(shard.to_local())
    else:
        tensor.copy_(whole)


def _receive_partition(parameter: Any, whole: Tensor | None) -> None:
    """ZeRO-3's own way: gathered, written by rank 0, and parted again."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if whole is not None:
            parameter.copy_(whole)


@contextmanager
def _outside_of_zero() -> Iterator[None]:
    """Has modules and tensors made as ever inside of a `deepspeed.zero.Init`, which would shard the source too."""
    if "deepspeed" not in sys.modules:
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import restore_init_context, shutdown_init_context

    shutdown_init_context()
    try:
        yield
    finally:
        restore_init_context()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _is_distributed() else 0
