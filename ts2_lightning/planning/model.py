"""The sizes of a model, from its config alone: it is built of tensors without memory."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers import AutoConfig, PreTrainedModel

from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.modules.head import backbone, output_head
from ts2_lightning.modules.language_model import build_language_model
from ts2_lightning.modules.router import experts_per_token, router_coefficient
from ts2_lightning.modules.sharding import decoder_layers, linear_parts, text_layers
from ts2_lightning.modules.text_part import is_below, left_out
from ts2_lightning.planning.caches import CacheLayer, count_cache
from ts2_lightning.planning.counting import FUSED, Activations, MicroBatch, count_activations
from ts2_lightning.planning.experts import count_experts, share_of_tokens
from ts2_lightning.planning.layout import Layout
from ts2_lightning.types import UserError


class Weight(NamedTuple):
    """One parameter; tied ones are one.

    Attributes:
        shape: Shape of the whole weight.
        itemsize: bytes of an element, as it is held.
        trained: whether it gets a gradient.
        layer: index of the decoder layer that it is in; -1 for the embeddings, the head and the last norm.
        linear: whether it is the matrix of a product with every token, which embeddings are not.
        quantized: held in 4 bits.
        gathered: bytes of an element, as a strategy that shards weights gathers it.
        names: under how many the model has it; 2 for a tied head.
        used: share of the tokens that it is multiplied with; below 1 for the experts of a mixture.
    """

    shape: tuple[int, ...]
    itemsize: int
    trained: bool
    layer: int
    linear: bool = False
    quantized: bool = False
    gathered: int = 4
    names: int = 1
    used: float = 1.0

    @property
    def elements(self) -> int:
        """How many."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Head:
    """The output head.

    Attributes:
        vocabulary: K.
        width: H.
        itemsize: bytes of an element of its matrix.
        trained: whether its matrix gets a gradient.
        plain: whether it is a matrix product and nothing else.
        tied: whether its matrix is the embeddings'.
    """

    vocabulary: int
    width: int
    itemsize: int
    trained: bool
    plain: bool
    tied: bool


@dataclass(frozen=True)
class Sizes:
    """What memory and time follow from.

    Attributes:
        architecture: its class.
        weights: all parameters, in the model's order.
        buffers: bytes.
        layers: number of decoder layers.
        heads_width: number of query heads times the width of one.
        head: the output head.
        hidden_itemsize: bytes of an element of the last hidden states.
        attention: `fused` or `eager`.
        masked: whether attention gets a mask.
        activations: figures by whether gradients are checkpointed.
    """

    architecture: str
    weights: tuple[Weight, ...]
    buffers: int
    layers: int
    heads_width: int
    head: Head
    hidden_itemsize: int
    attention: str
    masked: bool
    activations: dict[bool, Activations]

    @property
    def parameters(self) -> int:
        """How many, tied ones once."""
        return sum(w.elements for w in self.weights)


def measure(
    config: LanguageModelConfig, layout: Layout, batch: MicroBatch, modes: tuple[bool, ...] = (True, False)
) -> Sizes:
    """Builds the model of a config without memory, runs it, and counts.

    Args:
        config: Which model; only its config.json is read, and no weights.
        layout: how it is divided.
        batch: the largest micro-batch; whether it is masked follows from the attention.
        modes: with checkpointing, without, or both.

    Raises:
        UserError: no config.json there, or a model that cannot be divided so.
    """
    with _narrowed(config, layout.tensor_parallel) as narrow:
        plain = replace(narrow, attn_implementation="auto", gradient_checkpointing=False, quantization=None)
        model = build_language_model(plain, "meta")
    quantized = _quantized(model) if config.quantization else set()
    batch = replace(batch, masked=config.attn_implementation != "flash_attention_2")
    sizes = _sizes(model, config, layout, batch, quantized)
    dtypes = _gathered(model, layout)
    routed = experts_per_token(model) if router_coefficient(model, config.router_aux_loss_coef) else 0
    with FakeTensorMode():
        _recast(model, lambda p: torch.bfloat16 if p in quantized else dtypes[p])
        return replace(sizes, activations=_count(model, layout, batch, modes, routed))


def measure_decoding(config: LanguageModelConfig, dtype: torch.dtype) -> tuple[Sizes, tuple[CacheLayer, ...]]:
    """The same of a model that generates: its sizes, without activations, and what its cache keeps of a sequence.

    Args:
        config: Which model; only its config.json is read, and no weights.
        dtype: number format of weights and cache.

    Raises:
        UserError: no config.json there, or a model whose cache cannot be counted.
    """
    layout = Layout("single", "one device", dtype=dtype)
    model = build_language_model(replace(config, attn_implementation="auto", gradient_checkpointing=False), "meta")
    sizes = _sizes(model.eval(), config, layout, MicroBatch(1, 1), set())
    decoder = backbone(model)
    assert isinstance(decoder, PreTrainedModel)
    with FakeTensorMode():
        _recast(model, lambda _: dtype)
        count_experts(model)
        try:
            return sizes, count_cache(decoder)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UserError(
                f"{type(model).__name__} computes sizes from values, so its cache cannot be counted before it runs "
                f"({error.func})"
            ) from error


def _quantized(model: PreTrainedModel) -> set[Tensor]:
    """The matrices that are held in 4 bits: of the frozen linear layers that text goes through, but for the head."""
    outside = left_out(model)
    linear = {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_below(name, outside)
    }
    return {p for p in linear if not p.requires_grad} - {model.get_output_embeddings().weight}


def _gathered(model: PreTrainedModel, layout: Layout) -> dict[Tensor, torch.dtype]:
    """The dtype in which a GPU computes with each parameter: FSDP rounds all of them, FSDP2 those of linear layers."""
    dtypes: dict[Tensor, torch.dtype] = {p: layout.gathered or layout.dtype or p.dtype for p in model.parameters()}
    if layout.kind == "fsdp2" and layout.autocast == torch.bfloat16:
        parts = (part for layer in decoder_layers(model) for part in linear_parts(layer))
        dtypes |= {p: torch.bfloat16 for part in parts for p in part.parameters()}
    return dtypes


def _recast(model: nn.Module, dtype_of: Callable[[Tensor], torch.dtype]) -> None:
    """Gives a model new parameters and buffers on the device and in the mode of the caller; ties stay."""
    parameters = {
        p: nn.Parameter(torch.empty(p.shape, dtype=dtype_of(p)), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, parameters[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _choose_attention(model: PreTrainedModel, config: LanguageModelConfig) -> str:
    """`auto` is taken as sdpa, where the architecture has it; flash attention, if it is installed, takes less."""
    chosen = config.attn_implementation
    if chosen == "auto":
        chosen = "eager" if model.config._attn_implementation == "eager" else "sdpa"
    model.set_attn_implementation("eager" if chosen == "eager" else FUSED)
    return "eager" if chosen == "eager" else "fused"


def _count(
    model: PreTrainedModel, layout: Layout, batch: MicroBatch, modes: tuple[bool, ...], routed: int
) -> dict[bool, Activations]:
    decoder = backbone(model)
    assert isinstance(decoder, PreTrainedModel)
    able = [mode for mode in modes if model.supports_gradient_checkpointing or not mode]
    count_experts(model)
    try:
        return {mode: count_activations(decoder, batch, mode, layout.autocast, routed) for mode in able}
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"model.lm.path: {type(model).__name__} computes sizes from values, so its memory cannot be counted before "
            f"it runs ({error.func})"
        ) from error


def _sizes(
    model: PreTrainedModel, config: LanguageModelConfig, layout: Layout, batch: MicroBatch, quantized: set[Tensor]
) -> Sizes:
    layers = text_layers(model)
    dtypes = _gathered(model, layout)
    layer_of = {p: number for number, layer in enumerate(layers) for p in layer.parameters()}
    shares = share_of_tokens(model)
    names = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    weights = tuple(
        Weight(
            tuple(p.shape),
            (layout.dtype or p.dtype).itemsize,
            p.requires_grad,
            layer_of.get(p, -1),
            linear=p.dim() >= 2 and p in layer_of,
            quantized=p in quantized,
            gathered=dtypes[p].itemsize,
            names=names[p],
            used=shares.get(p, 1.0),
        )
        for p in model.parameters()
    )
    text = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)  # a model of recurrent states has none
    width = (getattr(text, "head_dim", None) or text.hidden_size // heads) if heads else 0
    matrix = model.get_output_embeddings().weight
    used = dtypes[matrix]
    return Sizes(
        architecture=type(model).__name__,
        weights=weights,
        buffers=sum(b.numel() * b.element_size() for b in model.buffers()),
        layers=len(layers),
        heads_width=heads * width,
        head=Head(
            vocabulary=matrix.shape[0],
            width=matrix.shape[1],
            itemsize=used.itemsize,
            trained=matrix.requires_grad,
            plain=type(output_head(model)) is nn.Linear,
            tied=matrix is model.get_input_embeddings().weight,
        ),
        # Also under autocast the last norm multiplies by its own weight, in the weights' dtype.
        hidden_itemsize=used.itemsize,
        attention=_choose_attention(model, config),
        masked=batch.masked,
        activations={},
    )


@contextmanager
def _narrowed(config: LanguageModelConfig, parts: int) -> Iterator[LanguageModelConfig]:
    """The model that each of some tensor-parallel GPUs computes: a part of the heads and of the MLP's inner width.

    Source: Shoeybi et al. (2019), Megatron-LM, section 3.
    """
    if parts == 1:
        yield config
        return
    architecture = AutoConfig.from_pretrained(config.path, revision=config.revision, trust_remote_code=False)
    text = architecture.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise UserError(f"trainer.strategy: {type(architecture).__name__} has no plan for tensor parallelism")
    text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(text, name) % parts:
            raise UserError(
                f"trainer.strategy: tensor_parallel_size {parts} does not divide {name} {getattr(text, name)}"
            )
        setattr(text, name, getattr(text, name) // parts)
    with tempfile.TemporaryDirectory() as directory:
        architecture.save_pretrained(directory)
        yield replace(config, path=directory, revision=None)
