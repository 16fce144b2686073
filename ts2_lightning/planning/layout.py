"""How a strategy lays a model over GPUs, read from the settings without starting anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)

from ts2_lightning.ranges import COUNT, NULL, check_number
from ts2_lightning.strategies import FSDP2, DeepSpeed, shard_ranks
from ts2_lightning.strategies.deepspeed import PRECISIONS
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

Kind = Literal["single", "ddp", "fsdp", "fsdp2", "zero"]

_KINDS: dict[type, Kind] = {
    DeepSpeedStrategy: "zero",  # before DDP, of which Lightning makes it a subclass
    DDPStrategy: "ddp",
    FSDPStrategy: "fsdp",
    ModelParallelStrategy: "fsdp2",
    SingleDeviceStrategy: "single",
}
_BUCKET = 200_000_000  # elements; Lightning's default for DeepSpeed
_CASTS = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "32-true": torch.float32, "64-true": torch.float64}
_AUTOCASTS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_OTHER_NAMES = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed", "None": "32-true"}


@dataclass(frozen=True)
class Layout:
    """How weights, gradients and optimizer state are divided over GPUs.

    Attributes:
        kind: Kind of the strategy.
        name: name for people.
        data_parallel: GPUs that hold different rows.
        tensor_parallel: GPUs that compute the same rows, each a part of every layer.
        copies: number of groups of GPUs that each hold all of the state, divided over the group (hybrid sharding).
        stage: Stage of ZeRO; 0 elsewhere.
        offload_optimizer: master weights and moments lie in the memory of the host.
        offload_parameters: weights too, while they are not in use.
        bucket: elements of DeepSpeed's communication buffers, of which there are two below stage 3.
        bucket_views: DDP's gradients are views of its communication buffers, not copies.
        dtype: that the strategy gives weights; None leaves theirs.
        gathered: dtype in which sharded weights are gathered; None is that of the weights.
        autocast: dtype of autocast, or None.
    """

    kind: Kind
    name: str
    data_parallel: int = 1
    tensor_parallel: int = 1
    copies: int = 1
    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket: int = _BUCKET
    bucket_views: bool = False
    dtype: torch.dtype | None = None
    gathered: torch.dtype | None = None
    autocast: torch.dtype | None = None

    @property
    def shards(self) -> int:
        """GPUs with rows of their own that a copy of the state is divided over, where the strategy divides it."""
        return self.data_parallel // self.copies


def read_layout(strategy: Any, precision: Any, gpus: int, gpus_per_node: int | None = None) -> Layout:
    """The layout that `trainer.strategy` and `trainer.precision` make.

    Args:
        strategy: a name that Lightning knows, or a mapping of `class_path` and `init_args`.
        precision: the trainer's setting.
        gpus: how many, over all nodes.
        gpus_per_node: how many of them in a node; None is all.

    Raises:
        UserError: a strategy or precision that is not known here, or that does not go with the number of GPUs.

    Example:
        >>> layout = read_layout("ddp", "bf16-mixed", gpus=4)
        >>> layout.name, layout.data_parallel, layout.autocast
        ('DDP', 4, torch.bfloat16)
    """
    cls, options = _strategy_class(strategy, gpus)
    kind = next((kind for base, kind in _KINDS.items() if issubclass(cls, base)), None)
    if kind is None:
        raise UserError(f"trainer.strategy: nothing is known of the memory of {cls.__name__}; {_KINDS_SAID}")
    if kind == "single" and gpus > 1:
        raise UserError(f"trainer.strategy: {cls.__name__} uses one GPU, not {gpus}; {_KINDS_SAID}")
    if kind == "zero":
        return _zero(cls, options, precision, gpus)
    cast, autocast = _precision(precision)
    if kind == "fsdp2":
        return _fsdp2(cls, options, cast, autocast, gpus, gpus_per_node or gpus)
    if kind == "fsdp":
        if options.get("sharding_strategy", "FULL_SHARD") != "FULL_SHARD":
            raise UserError("trainer.strategy: of FSDP only sharding_strategy FULL_SHARD is known here")
        return Layout("fsdp", "FSDP", gpus, dtype=cast, gathered=autocast, autocast=autocast)
    name = "one device" if kind == "single" else "DDP"
    views = bool(options.get("gradient_as_bucket_view"))
    return Layout(kind, name, gpus, bucket_views=views, dtype=cast, autocast=autocast)


_KINDS_SAID = "known are DDP, FSDP, FSDP2, DeepSpeed and a single device"


def _strategy_class(strategy: Any, gpus: int) -> tuple[type, Mapping[str, Any]]:
    if not isinstance(strategy, str):
        module, _, name = strategy["class_path"].rpartition(".")
        return getattr(import_module(module), name), strategy.get("init_args") or {}
    if strategy == "auto":
        return (DDPStrategy if gpus > 1 else SingleDeviceStrategy), {}
    if strategy not in StrategyRegistry:
        hint = did_you_mean(strategy, StrategyRegistry)
        raise UserError(f"trainer.strategy: Lightning knows no strategy {strategy!r}{hint}")
    entry: dict[str, Any] = StrategyRegistry[strategy]
    return entry["strategy"], entry["init_params"]


def _precision(precision: Any) -> tuple[torch.dtype | None, torch.dtype | None]:
    """To which dtype weights are cast, and autocast."""
    name = _OTHER_NAMES.get(str(precision), str(precision))
    if name not in {*_CASTS, *_AUTOCASTS}:
        raise UserError(f"trainer.precision: expected one of {', '.join([*_CASTS, *_AUTOCASTS])}, got {precision!r}")
    # Lightning leaves the weights alone at 32-true, whatever they are.
    return (None if name == "32-true" else _CASTS.get(name)), _AUTOCASTS.get(name)


def _zero(cls: type, options: Mapping[str, Any], precision: Any, gpus: int) -> Layout:
    if not issubclass(cls, DeepSpeed):
        raise UserError(
            "trainer.strategy: Lightning's own DeepSpeedStrategy is refused in training; set "
            "ts2_lightning.strategies.DeepSpeed, as configs/strategy/zero2.yaml does"
        )
    stage = int(options.get("stage", 2))
    if stage not in (1, 2, 3):
        raise UserError(f"trainer.strategy: DeepSpeed's stage must be 1, 2 or 3, got {stage}")
    cast, autocast = _precision(precision)
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision: DeepSpeed takes {' or '.join(PRECISIONS)} here, got {precision}")
    return Layout(
        "zero",
        f"ZeRO-{stage}",
        gpus,
        stage=stage,
        offload_optimizer=bool(options.get("offload_optimizer")),
        offload_parameters=bool(options.get("offload_parameters")),
        dtype=cast,
        autocast=autocast,
    )


def _fsdp2(
    cls: type,
    options: Mapping[str, Any],
    cast: torch.dtype | None,
    autocast: torch.dtype | None,
    gpus: int,
    gpus_per_node: int,
) -> Layout:
    default = 1 if issubclass(cls, FSDP2) else "auto"  # Lightning's own splits layers over all GPUs
    chosen = {"data_parallel_size": "auto", "tensor_parallel_size": default, **options}
    for size in ("data_parallel_size", "tensor_parallel_size"):
        if chosen[size] == "auto":
            continue
        check_number(f"trainer.strategy: {size}", chosen[size], COUNT)
        if gpus % chosen[size]:
            raise UserError(f"trainer.strategy: {size} {chosen[size]} does not divide {gpus} GPUs")
    tensor, data = chosen["tensor_parallel_size"], chosen["data_parallel_size"]
    if tensor == "auto":
        tensor = gpus // data if data != "auto" else gpus
    shards = _shards(options.get("shard_size"), gpus // tensor, tensor, gpus_per_node)
    copies = gpus // tensor // shards
    name = "FSDP2" if tensor == 1 else f"FSDP2, tensor parallel {tensor}"
    name += f", {copies} copies over {shards * tensor} GPUs each" if copies > 1 else ""
    return Layout("fsdp2", name, gpus // tensor, tensor, copies, dtype=cast, autocast=autocast)


def _shards(size: Any, data_parallel: int, tensor_parallel: int, gpus_per_node: int) -> int:
    """The GPUs that `shard_size` divides a copy over, of those that hold different rows."""
    if size != "node":
        check_number("trainer.strategy: shard_size", size, COUNT, NULL)
    try:
        return shard_ranks(size, data_parallel, tensor_parallel, gpus_per_node)
    except UserError as error:
        raise UserError(f"trainer.strategy: {error}") from None
