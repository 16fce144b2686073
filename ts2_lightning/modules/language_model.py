"""Causal language models: loaded whole into this process, or built without weights to be sharded first."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import safe_open
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import is_flash_attn_2_available

from ts2_lightning.model_limits import ModelLimits, limits_of
from ts2_lightning.modules.adapter_start import check_adapter_files, start_adapter
from ts2_lightning.modules.adapters import add_adapter, is_adapted
from ts2_lightning.modules.buffers import persistent_buffers
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.modules.embeddings import resize_embeddings, with_number_of_rows
from ts2_lightning.modules.head import check_head, evaluated
from ts2_lightning.modules.model_files import (
    FAILURES,
    AdapterFoundError,
    auto_class,
    check_weight_files,
    read_architecture,
    weight_paths,
)
from ts2_lightning.modules.nonfinite import first_nonfinite
from ts2_lightning.modules.router import check_router_loss
from ts2_lightning.modules.text_part import freeze_left_out, left_out
from ts2_lightning.types import UserError

_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""The floating dtypes of safetensors' headers."""


def load_language_model(config: LanguageModelConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a config with all its weights, and its adapter if it has one, in training mode.

    Args:
        config: Which model.
        dtype: Type of the weights, instead of the config's. In the checkpoint's own (`stored_dtype`) they are not read
            into memory, but mapped.

    Raises:
        UserError: nothing there that can be loaded, or not a model that can be trained here; the message says what was
            looked for.
    """
    dtype, config = dtype or getattr(torch, config.dtype), settle_embeddings(config)
    if config.quantization and find_spec("bitsandbytes") is None:
        raise UserError("model.lm.quantization: bitsandbytes is not installed; pip install 'ts2-lightning[qlora]'")
    check_model_files(config)
    with _explained(config.path):
        model = _read(config, dtype) if config.init == "pretrained" else _from_config(config, dtype)
    if is_adapted(model):  # of a hub's repository with both
        raise UserError(f"model.lm.path: {_said(config.path)} has a PEFT adapter beside its model; name one without")
    if config.resize_embeddings:
        in_files = stored_dtype(config) if config.init == "pretrained" else None
        resize_embeddings(model, config.resize_embeddings, in_files)
    _check_model(model, config)
    model = _prepared(model, config)
    if config.adapter is not None and config.adapter.path is not None:
        start_adapter(model, config.adapter.path)
    return model


def check_model_files(config: LanguageModelConfig) -> None:
    """Looks at a model's files, as far as that takes no time, before anything waits for its weights.

    Raises:
        UserError: nothing there that can be loaded; the message says what is there.
    """
    with _explained(config.path):
        read_architecture(config.path, config.revision, config.init == "pretrained")
        if config.init == "pretrained":
            check_weight_files(config.path)
    check_adapter_files(config.adapter, config.written_path or config.path)


def read_limits(config: LanguageModelConfig) -> ModelLimits:
    """What a model takes, by its config.json alone, with the rows that it is to be given.

    Raises:
        UserError: there is none that can be read; the message says what is there.
    """
    with _explained(config.path):
        limits = limits_of(read_architecture(config.path, config.revision, pretrained=False))
    return limits._replace(embeddings=max(limits.embeddings, int(config.resize_embeddings or 0)))


def settle_embeddings(config: LanguageModelConfig, tokens: int | None = None) -> LanguageModelConfig:
    """A config with the number of rows that `resize_embeddings: true` means, which whoever loads the model has to know.

    Args:
        config: Which model.
        tokens: Number of tokens of the tokenizer; None if there is none.

    Raises:
        UserError: as `with_number_of_rows` and `read_limits`.
    """
    if not config.resize_embeddings:
        return config
    return with_number_of_rows(config, read_limits(replace(config, resize_embeddings=None)), tokens)


def _check_model(model: PreTrainedModel, config: LanguageModelConfig) -> None:
    weights = first_nonfinite([*model.named_parameters(), *persistent_buffers(model).items()])
    if weights:
        raise UserError(
            f"model.lm.path: weights of {_said(config.path)} are NaN or infinite: {weights}; nothing could be learnt "
            "from them, so take another copy of the model, or another model.lm.dtype"
        )
    try:
        with evaluated(model):
            check_head(model)
    except UserError as error:
        raise UserError(f"model.lm.path: {_said(config.path)}: {error}") from error
    with evaluated(model):
        check_router_loss(model, config.router_aux_loss_coef)


def build_language_model(config: LanguageModelConfig, device: torch.device | str | None = "meta") -> PreTrainedModel:
    """The model of a config without its weights, to be sharded and then given them by `load_weights`.

    Args:
        config: Which model.
        device: where the parameters are; on `meta` they take no memory. None: torch's default, for a
            `deepspeed.zero.Init` around the call, which shards each layer as it is made.

    Raises:
        UserError: nothing there to build a model from, or weights that cannot be sharded.
    """
    check_shardable(config)
    config = settle_embeddings(config)
    with torch.device(device) if device is not None else nullcontext(), no_init_weights():
        with _explained(config.path):
            model = _from_config(config, getattr(torch, config.dtype))
        model.tie_weights()  # which `no_init_weights` leaves out
        return _prepared(model, config)


def check_shardable(config: LanguageModelConfig) -> None:
    """Raises a `UserError` if a model's weights have to stay whole."""
    if config.quantization:
        raise UserError(
            f"model.lm.quantization: {config.quantization} weights cannot be sharded, their 4-bit blocks would be "
            "parted from their scales; choose a strategy that holds them whole (ddp, zero1, zero2), or no quantization"
        )


def stored_dtype(config: LanguageModelConfig) -> torch.dtype:
    """The dtype of a checkpoint's weights; of several, the one that holds them all. Float32 where none is found."""

    names: set[str] = set()
    with _explained(config.path):
        for file in weight_paths(config.path, config.revision):
            with safe_open(file, framework="pt") as weights:
                names |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (no mapping)
    widest, *others = [_STORED[name] for name in sorted(names & _STORED.keys())] or [torch.float32]
    for dtype in others:
        widest = torch.promote_types(widest, dtype)
    return widest


def _read(config: LanguageModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=_never_quantized(config) if config.quantization else None,
    )
    architecture = read_architecture(config.path, config.revision)
    loaded: Any = auto_class(architecture).from_pretrained(
        config.path,
        revision=config.revision,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **({"quantization_config": quantization} if config.quantization else {}),
        **_options(config, dtype),
    )
    model, report = loaded
    _check_report(config.path, report)
    for module in model.modules():
        # Bitsandbytes would repack a CPU's weights when they are evaluated: no gradient would flow through them then.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _never_quantized(config: LanguageModelConfig) -> list[str] | None:
    """The head and what text does not reach, which is exported as it was; None: what transformers takes, the head."""
    with torch.device("meta"), no_init_weights():
        model = _from_config(config, torch.bfloat16)
    outside, head = left_out(model), model.get_output_embeddings()
    return [*outside, *(name for name, module in model.named_modules() if module is head)] if outside else None


def _from_config(config: LanguageModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    architecture = read_architecture(config.path, config.revision, config.init == "pretrained")
    if config.resize_embeddings:
        architecture.get_text_config().vocab_size = config.resize_embeddings
    model: PreTrainedModel = auto_class(architecture).from_config(architecture, **_options(config, dtype))
    return model


def _options(config: LanguageModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "attn_implementation": _attention(config),
        "dtype": dtype,  # from_pretrained would keep the checkpoint's
        # The grouped product of a mixture's experts has no float64.
        **({"experts_implementation": "eager"} if dtype == torch.float64 else {}),
        "trust_remote_code": False,  # left out, transformers asks on the terminal whether to run the model's code
    }


def _attention(config: LanguageModelConfig) -> str | None:
    """The name for transformers; None leaves it to choose sdpa, or eager for architectures without (Gemma-2)."""
    if config.attn_implementation != "auto":
        return config.attn_implementation
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else None


def _prepared(model: PreTrainedModel, config: LanguageModelConfig) -> PreTrainedModel:
    """What a config says of a model but for its weights."""
    if config.deterministic_attention:
        os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    freeze_left_out(model)
    if config.adapter is not None:
        add_adapter(model, config.adapter)
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"model.lm.gradient_checkpointing: {type(model).__name__} has none; set it to false")
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def _check_report(path: str, report: dict[str, Any]) -> None:
    """Transformers draws at random, with a warning, what the checkpoint does not hold; it would be trained as it is."""
    absent = [*sorted(report.get("missing_keys", ())), *sorted(key[0] for key in report.get("mismatched_keys", ()))]
    if absent:
        raise UserError(
            f"model.lm.path: the weights in {_said(path)} do not fit its config.json: {len(absent)} are missing or of "
            f"another shape, such as {absent[0]}"
        )
    if left_out := sorted(report.get("unexpected_keys", ())):
        rank_zero_warn(
            f"model.lm.path: {len(left_out)} weights in {_said(path)} are left out, as its config.json has no place "
            f"for them, such as {left_out[0]}"
        )


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Says in one line what the libraries could not do with a model's files."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"model.lm: cannot build {_said(path)} here: {_one_line(error)[:300]}") from error
    except UserError:
        raise
    except FAILURES as error:
        raise UserError(_explain(path, error)) from error


def _explain(path: str, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else _one_line(error)
    if not os.path.exists(path):  # False too where no file could be called so
        kind = (
            "no such directory here"
            if path.startswith((".", "/", "~")) or path.count("/") > 1
            else ("no directory of that name, and it could not be loaded from the hub")
        )
        return f"model.lm.path: cannot load {_said(path)}: {kind} ({reason[:200]})"
    return (
        f"model.lm.path: cannot load {_said(path)}: {reason if isinstance(error, AdapterFoundError) else reason[:300]}"
    )


def _said(path: str) -> str:
    """A path in a message, the middle of a long one left out."""
    return repr(path if len(path) <= 160 else f"{path[:100]}...{path[-40:]}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
