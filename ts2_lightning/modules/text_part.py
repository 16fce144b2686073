"""The part of a model that text goes through; a vision tower gets no gradient from it, and is left as it is."""

from collections.abc import Iterator

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from transformers import PreTrainedModel


def text_part(model: PreTrainedModel) -> nn.Module:
    """The decoder of a model: of one that sees images too, the language model without what turns images to tokens."""
    decoder: nn.Module = model.get_decoder()
    return decoder if is_composite(model) else model.base_model


def is_composite(model: PreTrainedModel) -> bool:
    """Whether a model is made of several, of which one is for text."""
    return model.config.get_text_config() is not model.config


def left_out(model: PreTrainedModel) -> list[str]:
    """The names of the modules, and single parameters, that text does not reach, each as a whole.

    What is outside of the decoder, the embeddings and the head: a vision tower, and the projector behind it.
    """
    if not is_composite(model):
        return []
    reached = [text_part(model), model.get_input_embeddings(), model.get_output_embeddings()]
    inside = {parameter for module in reached if module is not None for parameter in module.parameters()}
    return list(_outside(model, inside, ""))


def _outside(module: nn.Module, inside: set[nn.Parameter], prefix: str) -> Iterator[str]:
    for name, parameter in module.named_parameters(recurse=False):
        if parameter not in inside:
            yield f"{prefix}{name}"
    for name, child in module.named_children():
        parameters = set(child.parameters())
        if parameters and parameters.isdisjoint(inside):
            yield f"{prefix}{name}"
        else:
            yield from _outside(child, inside, f"{prefix}{name}.")


def is_below(name: str, places: list[str]) -> bool:
    """Whether a module or parameter is one of some places, or inside of one.

    >>> is_below("model.visual.blocks.0", ["model.visual"]), is_below("model.visuals", ["model.visual"])
    (True, False)
    """
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def freeze_left_out(model: PreTrainedModel) -> None:
    """Has nothing trained that gets no gradient from text, for which DDP would wait, and an optimizer keep moments."""
    places = left_out(model)
    for name, parameter in model.named_parameters():
        if is_below(name, places):
            parameter.requires_grad_(False)


def tell_left_out(model: PreTrainedModel) -> None:
    """One line that names what is left out, with its share of the weights."""
    places = left_out(model)
    if places:
        sizes = {name: int(getattr(p, "ds_numel", p.numel())) for name, p in model.named_parameters()}
        base = {name: size for name, size in sizes.items() if ".lora_" not in name}
        share = sum(size for name, size in base.items() if is_below(name, places)) / sum(base.values())
        rank_zero_info(
            f"Text gives no gradient to {' and '.join(places)} ({share:.1%} of the weights): they are neither trained "
            "nor adapted, and exported as they are"
        )
