"""How the network is sharded: each decoder layer by itself, and what is left with the root.

The root is the module that holds both backbone and loss head, so that a head is whole around its loss, and a tied one
is one parameter of the root.
"""

from collections.abc import Callable
from functools import partial

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import wrap
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from ts2_lightning.engines import LossEngine
from ts2_lightning.losses import TokenLoss
from ts2_lightning.modules.adapter_targets import check_gathering
from ts2_lightning.modules.adapters import adapted_layers, is_adapted, tell_adapted
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.modules.language_model import build_language_model, load_language_model
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.reference import (
    ReferenceModel,
    check_reference,
    named_as_reference,
    reference_config,
)
from ts2_lightning.modules.router import router_coefficient, tell_router_loss
from ts2_lightning.modules.text_part import tell_left_out, text_part
from ts2_lightning.modules.weights import load_weights
from ts2_lightning.strategies import DeepSpeed
from ts2_lightning.types import UserError

ROUNDED = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
"""Weights gathered in bfloat16, gradients summed in float32; what comes in is autocast's to round."""

SPLITS: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
"""Transformers' names for how a matrix is split, as far as they are supported here."""


def make_network(
    lm: LanguageModelConfig,
    loss: TokenLoss,
    engine: LossEngine,
    strategy: Strategy | None = None,
    reference: str | None = None,
) -> SFTNetwork:
    """The network with its weights, of which a rank never holds more than its share where the strategy shards them.

    Args:
        lm: the model.
        loss: the objective.
        engine: how logits come to be.
        strategy: strategy as far as it has weights; under ZeRO-3 in its `model_sharded_context`, as Lightning calls it.
        reference: another model than the base as the reference of a loss that needs one, see `reference_config`.

    Raises:
        UserError: the model cannot be loaded or split, or the strategy is known to take other steps.
    """
    if isinstance(strategy, DeepSpeedStrategy) and not isinstance(strategy, DeepSpeed):
        raise UserError(
            "trainer.strategy: under Lightning's own DeepSpeedStrategy gradients are divided twice and rounded to "
            "bfloat16; set ts2_lightning.strategies.DeepSpeed, as configs/strategy/zero2.yaml does"
        )
    copy = None
    if loss.needs_reference:
        check_reference(lm, loss, reference)
        copy = reference_config(lm, reference)
    if isinstance(strategy, ModelParallelStrategy):
        network = _network(lm, loss, engine, partial(build_language_model, device="meta"), copy)
        shard(network, strategy.device_mesh, strategy.precision_plugin.precision == "bf16-mixed")
        _load_weights(network, lm, copy, strategy.root_device)
    elif isinstance(strategy, DeepSpeed) and strategy.zero_stage_3:
        network = _network(lm, loss, engine, partial(build_language_model, device=None), copy)  # sharded as it is made
        if is_adapted(network.language_model):
            check_gathering(adapted_layers(network.language_model).values())
        _load_weights(network, lm, copy, strategy.root_device)
    else:
        if copy is not None and isinstance(strategy, FSDPStrategy):
            raise UserError(
                "trainer.strategy: FSDP1 cannot hold the frozen copy of the model that model.loss is anchored to; set "
                "ts2_lightning.strategies.FSDP2, as configs/strategy/fsdp2.yaml does"
            )
        network = _network(lm, loss, engine, load_language_model, copy)
        if isinstance(strategy, FSDPStrategy):
            wrap_layers(network)
    if strategy is not None and strategy.precision_plugin.precision == "64-true":
        for model in network.models:
            call_experts_one_by_one(model)
    tell_left_out(network.language_model)
    tell_adapted(network.language_model)
    tell_router_loss(network.language_model, lm.router_aux_loss_coef)
    return network


def call_experts_one_by_one(model: PreTrainedModel) -> None:
    """Has a mixture's experts called one by one, as float64 needs: their grouped product has none."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


def _network(
    lm: LanguageModelConfig,
    loss: TokenLoss,
    engine: LossEngine,
    build: Callable[[LanguageModelConfig], PreTrainedModel],
    copy: LanguageModelConfig | None,
) -> SFTNetwork:
    """The network, and the reference of its loss, if it needs one; models are built the same way."""
    model, reference = build(lm), None
    if loss.needs_reference:
        with named_as_reference():
            reference = ReferenceModel(model if copy is None else build(copy))
    return SFTNetwork(model, loss, engine, router_coefficient(model, lm.router_aux_loss_coef), reference)


def _load_weights(
    network: SFTNetwork, lm: LanguageModelConfig, copy: LanguageModelConfig | None, device: torch.device
) -> None:
    trained, *frozen = network.models
    load_weights(trained, lm, device)
    for model in frozen:
        assert copy is not None
        with named_as_reference():
            load_weights(model, copy, device)


def shard(network: SFTNetwork, mesh: DeviceMesh, autocast: bool = False) -> None:
    """Shards a network in place (FSDP2), each layer split over the tensor-parallel ranks before, if there are several.

    Args:
        network: whole, or on the meta device.
        mesh: dimensions `data_parallel` and `tensor_parallel`; or `replicate`, `shard` and `tensor_parallel`, of which
            the first has copies of the shards.
        autocast: it is called in autocast to bfloat16. Weights that autocast rounds in any case are then rounded before
            they are gathered, which halves the traffic and spares autocast's copies; gradients are summed in float32.

    Raises:
        UserError: the model cannot be split.
    """
    if mesh["tensor_parallel"].size() > 1:
        for model in network.models:
            split_layers(model, mesh["tensor_parallel"])
    ranks = mesh[tuple(name for name in mesh.mesh_dim_names or () if name != "tensor_parallel")]
    for layer in (layer for model in network.models for layer in decoder_layers(model)):
        if autocast and (parts := linear_parts(layer)):
            fully_shard(parts, mesh=ranks, mp_policy=ROUNDED)
        fully_shard(layer, mesh=ranks)
    fully_shard(network, mesh=ranks)


def linear_parts(layer: nn.Module) -> list[nn.Module]:
    """The children of a layer that have no weights but those of linear layers, which autocast rounds to bfloat16.

    Example:
        >>> [type(part).__name__ for part in linear_parts(nn.TransformerEncoderLayer(8, nhead=2))]
        ['Linear', 'Linear']
    """

    def is_linear(part: nn.Module) -> bool:
        owners = [type(module) for module in part.modules() if module._parameters]
        return bool(owners) and all(owner is nn.Linear for owner in owners)

    return [part for part in layer.children() if is_linear(part)]


def split_layers(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Splits the matrices of each layer over ranks, by the plan that transformers has for the architecture.

    What the plan does not name (embeddings, norms, the head) is whole on every rank: a tied head stays tied.

    Raises:
        UserError: there is no plan, or one that asks for more than columns and rows, or parts are not equal.
    """
    plan: dict[str, str] = getattr(model.config.get_text_config(), "base_model_tp_plan", None) or {}
    if trouble := _trouble_with_splitting(model, plan, mesh.size()):
        raise UserError(f"FSDP2(tensor_parallel_size): {type(model).__name__} {trouble}; set it to 1")
    parallelize_module(text_part(model), mesh, {place: SPLITS[split]() for place, split in plan.items()})


def _trouble_with_splitting(model: PreTrainedModel, plan: dict[str, str], ranks: int) -> str:
    if not plan:
        return "has no plan for it in transformers"
    if unknown := sorted(set(plan.values()) - SPLITS.keys()):
        return f"has a plan for it that asks for more than columns and rows: {', '.join(unknown)}"
    if is_adapted(model):
        return "has an adapter, whose matrices its plan does not split"
    heads = model.config.get_text_config().num_key_value_heads
    return f"has {heads} heads of keys, which {ranks} ranks cannot share equally" if heads % ranks else ""


def wrap_layers(network: SFTNetwork) -> None:
    """Has FSDP1 shard each decoder layer by itself; Lightning wraps what is left. Never run: it refuses CPUs."""
    layers = set(decoder_layers(network.language_model))
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if child in layers:
                setattr(module, name, wrap(child))


def text_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Those of `decoder_layers` that text goes through: none of a vision tower."""
    inside = set(text_part(model).modules())
    return [layer for layer in decoder_layers(model) if layer in inside]


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that transformers says are to stay together, in their order."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]
