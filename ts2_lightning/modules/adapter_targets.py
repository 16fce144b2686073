"""What a LoRA adapter is to adapt of a model: linear layers, and the experts of a mixture."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ts2_lightning.modules.config import AdapterConfig
from ts2_lightning.modules.text_part import is_below, left_out
from ts2_lightning.types import UserError

_EXPERTS = "all-experts"
_SETTING = "model.lm.adapter"


def linear_targets(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """The last parts of the names of the layers to adapt, or what the user calls them.

    Raises:
        UserError: one of them is not there.
    """
    head = model.get_output_embeddings()
    outside = left_out(model)
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not is_below(name, outside)
    }
    endings = {name.rpartition(".")[2]: module is head for name, module in linear.items()}
    if config.target_modules == "all-linear":
        wanted = [ending for ending, is_head in endings.items() if not is_head]
    else:
        wanted = list(config.target_modules)
    if config.head:
        wanted += [name for name, module in linear.items() if module is head] or ["the output head"]
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise UserError(
                f"{_SETTING}.target_modules: no linear layer of {type(model).__name__} is called {target!r}; it "
                f"has {', '.join(sorted(endings))}"
            )
    return sorted(set(wanted))


def parameter_targets(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """The last parts of the names of the parameters to adapt that are in no linear layer, or what the user calls them.

    Raises:
        UserError: one of them is not there, or no matrix.
    """
    if not config.target_parameters:
        return []
    outside = left_out(model)
    names = [name for name in expert_parameters(model) if not is_below(name, outside)]
    endings = sorted({".".join(name.split(".")[-2:]) for name in names})
    if config.target_parameters == _EXPERTS:
        if not endings:
            raise UserError(
                f"{_SETTING}.target_parameters: {type(model).__name__} has no experts in one parameter; its linear "
                "layers are adapted by target_modules; leave target_parameters null"
            )
        return endings
    for target in config.target_parameters:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise UserError(
                f"{_SETTING}.target_parameters: no parameter of {type(model).__name__} with the matrices of several "
                f"experts is called {target!r}; it has {', '.join(endings) or 'none'}"
            )
    return sorted(set(config.target_parameters))


def expert_parameters(model: nn.Module) -> list[str]:
    """The names of the parameters [E, *, *] that hold the matrices of E experts.

    transformers 5 fuses experts so; what else is of three dimensions is the kernel of a convolution.
    """
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if not type(module).__module__.startswith("torch.nn.")
        for key, parameter in module.named_parameters(recurse=False)
        if len(getattr(parameter, "ds_shape", parameter.shape)) == 3
    ]


def check_parameters(model: nn.Module, names: list[str], dropout: float) -> None:
    """Whether linear layers can be adapted as parameters.

    Args:
        model: has them.
        names: the last parts of the names of the layers.
        dropout: Dropout of the adapter.

    Raises:
        UserError: there is a dropout, or a layer is held in 4 bits.
    """
    layers = [
        module for name, module in model.named_modules() if any(f".{name}".endswith(f".{ending}") for ending in names)
    ]
    quantised = any(type(layer) not in (nn.Linear, Conv1D) for layer in layers)
    if dropout or quantised:
        what = f"dropout must be 0, got {dropout}" if dropout else "nothing may be held in 4 bits"
        raise UserError(
            f"{_SETTING}: {what}, to adapt {', '.join(names)} of {type(model).__name__}, which PEFT can only do as "
            f"parameters; or leave them out of target_modules"
        )


def check_gathering(layers: Iterable[object]) -> None:
    """Whether ZeRO-3 gathers all weights that an adapter changes.

    It gathers the weights of a module when that module is called. What adapts a parameter reads it before.

    Args:
        layers: PEFT's.

    Raises:
        UserError: it does not.
    """
    names = sorted({layer.parameter_name for layer in layers if hasattr(layer, "parameter_name")})
    if names:
        raise UserError(
            f"trainer.strategy: ZeRO-3 does not gather the parameters {', '.join(names)} for their adapter; "
            f"choose FSDP2 or ZeRO-2, or leave {_SETTING}.target_parameters null"
        )
