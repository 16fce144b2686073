"""A trained model as a directory that transformers, and what reads its format (vLLM, ...), loads and serves.

What is written:

- Weights: safetensors, in the layout of the hub's checkpoints (transformers renames and splits what it
  fused on loading), tied weights once.
- `config.json`: the base model's file with the exported dtype, and whatever training changed about the
  architecture. Runtime switches such as `use_cache` stay as the base had them.
- Tokenizer: the source's own files, byte for byte, but for two entries of `tokenizer_config.json`: a
  stale `chat_template`, and a `tokenizer_class` that only transformers 5 knows. (A tokenizer saved anew
  by transformers 5 may be refused by vLLM.)
- `chat_template.jinja`: the template that was trained. transformers prefers this file to an entry
  of `tokenizer_config.json`.
- `README.md`: the model card, with what the run's records say, and its picture (`model_card`).
- `export.json`, only where the weights are not simply those of a checkpoint: what they are instead.
- `generation_config.json`: the base model's, whose `eos_token_id` also lists the tokens that close a
  turn. Without them a chat model trained from a base model does not stop.

vLLM itself was never run on it; a test checks the files against vLLM's requirements.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.checkpoint_files.reading import Checkpoint, StoredTensor, read_checkpoint, weights_of
from ts2_lightning.export.adapter_files import ADAPTER_FILES, is_hub_name, write_adapter
from ts2_lightning.export.averaging import averaged
from ts2_lightning.export.base_files import BaseWeights, base_json
from ts2_lightning.export.card_picture import PICTURE
from ts2_lightning.export.companions import (
    ORIGIN,
    TOKENIZER_FILES,
    copy_tokenizer,
    has_chat_template,
    write_chat_template,
    write_config,
    write_generation_config,
    write_origin,
)
from ts2_lightning.export.hub_names import Ties, in_file_layout, plain_structure, recall_conversions
from ts2_lightning.export.interpolation import Interpolation, between, check_start
from ts2_lightning.export.model_card import CARD, changed_card, write_card
from ts2_lightning.export.output_directory import check_place, check_room, replacing
from ts2_lightning.export.rounding import ExportedWeight, Rounding
from ts2_lightning.export.settings import WEIGHT_DTYPES, ExportSettings, origin_of, subject_of
from ts2_lightning.export.shards import SHARD_BYTES, as_written, write_shards
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.adapters import check_product_alone, check_trained_state, is_adapted, merged_weights
from ts2_lightning.modules.language_model import build_language_model, load_language_model, stored_dtype
from ts2_lightning.types import UserError

_LOG = logging.getLogger("lightning.pytorch")

_EXPORTED_FILES = (
    *("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", ORIGIN),
    *ADAPTER_FILES,
    *TOKENIZER_FILES,
)


def export_model(
    model: PreTrainedModel, out: str | Path, settings: ExportSettings, revision: str | None = None
) -> Path:
    """Writes a model as a transformers directory that answers through the trained chat template, and stops.

    The directory is written beside `out` under a hidden name and renamed when complete; an existing export at
    `out` is replaced then, and not before. Beside the model, one tensor and what it is cast
    to are in memory. Custom code is never run or copied (`trust_remote_code` stays off).

    Args:
        model: model that is whole in this process, with or without an adapter; its `name_or_path` is the place of the
            base model's files.
        out: directory to make.
        settings: form of the weights, and files beside them.
        revision: revision of the base model on the hub; also of the tokenizer, if it is the base model's own.

    Returns:
        `out`, as a `Path`.

    Raises:
        UserError: if `out` is one of the sources, or a directory that holds something else than an export; if
            no tokenizer files are found; if the weights are sharded over ranks, or not finite; if the disk is full.
    """
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise UserError(f"cannot export {name}: it is sharded over ranks, so export from a checkpoint instead")
    if not is_adapted(model):
        starts = BaseWeights(model.name_or_path, revision)
        weights = (ExportedWeight(name, w, w.dtype, starts.reading(name)) for name, w in model.state_dict().items())
        return _export(model, weights, out, settings, revision, between(model, settings.toward_base, revision))
    if settings.toward_base != 1:
        check_product_alone(model)
    if settings.adapter == "separate":
        return _export_adapter(model, out, settings, revision)
    if hasattr(model.config, "quantization_config"):
        settings = replace(settings, dtype=settings.dtype or "bfloat16")
    merged = (
        ExportedWeight(w.name, w.value, w.held, partial(_itself, w.base))
        for w in merged_weights(model, settings.toward_base)
    )
    return _export(plain_structure(model), merged, out, settings, revision)


def export_checkpoint(
    checkpoint: Path,
    lm: LanguageModelConfig,
    out: str | Path,
    settings: ExportSettings,
    others: Sequence[Path] = (),
) -> Path:
    """Writes a transformers directory from a checkpoint of any strategy, without a model in memory; see `export_model`.

    Float32 masters are exported where there are any. The base model that an adapter is merged into is mapped
    into memory from its files, or held in 4 bits.

    Args:
        checkpoint: checkpoint file, or directory of FSDP2 or DeepSpeed.
        lm: configuration of the model that was trained.
        out: directory to make.
        settings: form of the weights, and files beside them.
        others: checkpoints of the same model, the mean of which and the first is exported, see `averaging`.

    Returns:
        `out`, as a `Path`.

    Raises:
        UserError: see `export_model`; if there is no such checkpoint, if parts of it are missing, or if it is another
            model's.
    """
    _check_place(Path(out), [lm.path, settings.tokenizer_source])  # before anything large is loaded
    settings = replace(settings, base=settings.base or lm.written_path or lm.path)
    if settings.toward_base != 1:
        check_start(lm)
    lm = _to_load(lm, 1 + len(others))
    stored = {path: read_checkpoint(path) for path in (checkpoint, *others)}
    settings = replace(settings, step=stored[checkpoint].step)
    if others:
        settings = replace(settings, origin={**settings.origin, "average_of": [path.name for path in stored]})
    if lm.adapter is None or settings.adapter == "separate":
        model = build_language_model(replace(lm, quantization=None), "meta")
    else:
        model = load_language_model(lm, stored_dtype(lm))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = _weights({path: _chosen(one, names, path, settings.ema) for path, one in stored.items()}, lm)
    check_trained_state(weights, model)
    if lm.adapter is not None:
        adapter = {name: weight.read() for name, weight in weights.items()}
        model.load_state_dict(adapter, strict=False, assign=True)
        export = _export_adapter if settings.adapter == "separate" else export_model
        return export(model, out, settings, lm.revision)
    recall_conversions(model, lm.path, lm.revision)
    starts = BaseWeights(lm.path if lm.init == "pretrained" else None, lm.revision)
    trained = (ExportedWeight(name, w.read(), w.dtype, starts.reading(name)) for name, w in weights.items())
    left_out = _left_out(model, weights.keys(), lm, checkpoint)
    weights_between = between(model, settings.toward_base, lm.revision)
    return _export(model, itertools.chain(trained, left_out), out, settings, lm.revision, weights_between)


def _to_load(lm: LanguageModelConfig, checkpoints: int) -> LanguageModelConfig:
    """The config of the model to load: without settings of the training machine and the start of its adapter.

    Args:
        lm: configuration of the model that was trained.
        checkpoints: number of checkpoints, whose adapters are beside each other.
    """
    lm = replace(lm, attn_implementation="auto", gradient_checkpointing=False)
    if lm.adapter is None:
        return lm
    rank, alpha = checkpoints * lm.adapter.r, checkpoints * lm.adapter.alpha
    return replace(lm, adapter=replace(lm.adapter, path=None, r=rank, alpha=alpha))


def _chosen(checkpoint: Checkpoint, names: Sequence[str], path: Path, ema: bool) -> dict[str, StoredTensor]:
    """The weights of a checkpoint, or their moving averages, beside which there are buffers."""
    weights = weights_of(checkpoint, names, path)
    if not ema:
        return weights
    if not checkpoint.ema:
        raise UserError(
            f"export ema: {path} has no moving averages of the weights; leave it out, or train with the callback EMA"
        )
    return weights | weights_of(checkpoint._replace(weights={**checkpoint.ema}), names, path)


def _weights(each: Mapping[Path, Mapping[str, StoredTensor]], lm: LanguageModelConfig) -> Mapping[str, StoredTensor]:
    """The weights of a checkpoint, or the mean of several."""
    if len(each) == 1:
        return next(iter(each.values()))
    return averaged(each, None if lm.adapter is None else lm.adapter.r // len(each))


def _left_out(
    model: PreTrainedModel, stored: Collection[str], lm: LanguageModelConfig, checkpoint: Path
) -> list[ExportedWeight]:
    """The weights that were not trained and that a checkpoint leaves out, such as a vision tower's: the base model's.

    Raises:
        UserError: if no base model has them.
    """
    names = [name for name, parameter in model.named_parameters() if not (parameter.requires_grad or name in stored)]
    if not names:
        return []
    if lm.init == "random":
        raise UserError(f"{checkpoint}: it has no {names[0]}, which was not trained, and no base model has it either")
    base = load_language_model(lm, stored_dtype(lm)).state_dict()  # files may have them under other names
    return [ExportedWeight(name, base[name], base[name].dtype, partial(_itself, base[name])) for name in names]


def checkpoint_step(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint's weights have seen."""
    return read_checkpoint(checkpoint).step


def is_sharded(parameter: Tensor) -> bool:
    """Whether a parameter's values are spread over ranks, or nowhere."""
    return hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id") or parameter.is_meta


def _export(
    structure: PreTrainedModel,
    weights: Iterable[ExportedWeight],
    out: str | Path,
    settings: ExportSettings,
    revision: str | None,
    interpolation: Interpolation | None = None,
) -> Path:
    """Writes whole weights and their config.

    Args:
        structure: model with the names, shapes and ties of the weights; its values are not read.
        weights: weights under its names.
        out: see `export_model`.
        settings: see `export_model`.
        revision: see `export_model`.
        interpolation: what is written in place of the weights; None writes the weights themselves.
    """
    if settings.adapter == "separate":
        raise UserError("export adapter: separate needs a run with an adapter (model.lm.adapter); this one has none")

    def write(place: Path) -> None:
        dtype = _dtype(settings.dtype, _base(structure), revision)
        first, others = _peek(weights)
        main = dtype or first.dtype
        expected = sum(tensor.numel() for tensor in structure.state_dict().values()) * main.itemsize
        check_room(place, expected)
        ties, rounding = Ties(structure), Rounding()
        if interpolation is None:
            written = ties.once(_written(others, dtype, rounding, structure.all_tied_weights_keys))
            tensors = in_file_layout(structure, written)
        else:
            exact = in_file_layout(structure, ties.once((weight.name, weight.value) for weight in others))
            tensors = interpolation.written(exact, main, rounding)
        write_shards(tensors, place, expected, SHARD_BYTES)
        name = str(main).removeprefix("torch.")
        write_config(structure, place, _base(structure), revision, name, untied=bool(ties.parted))
        if rounding.complaint:
            _LOG.warning(rounding.complaint)
        if interpolation is not None and interpolation.new_rows:
            _LOG.warning(interpolation.about_new_rows)

    return _write(structure, out, settings, revision, write)


def _peek(weights: Iterable[ExportedWeight]) -> tuple[ExportedWeight, Iterator[ExportedWeight]]:
    """The first weight of floating point, whose dtype the config names, and all weights from the start."""
    before: list[ExportedWeight] = []
    iterator = iter(weights)
    for weight in iterator:
        before.append(weight)
        if weight.value.is_floating_point():
            break
    return before[-1], itertools.chain(before, iterator)


def _written(
    weights: Iterable[ExportedWeight], dtype: torch.dtype | None, rounding: Rounding, aliases: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The weights as they are written; what is tied to another counts once in the rounding."""
    for weight in weights:
        tensor = as_written(weight.name, weight.value, dtype or weight.dtype)
        if weight.name not in aliases:
            rounding.add(weight, tensor)
        yield weight.name, tensor


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _export_adapter(model: PreTrainedModel, out: str | Path, settings: ExportSettings, revision: str | None) -> Path:
    """Writes an adapter by itself; below it there may be nothing but the names of the weights."""
    dtype, base = WEIGHT_DTYPES.get(settings.dtype or ""), settings.base or model.name_or_path or ""

    def write(place: Path) -> None:
        write_adapter(model, place, dtype, base, settings.toward_base)

    result = _write(model, out, settings, revision, write)
    if not is_hub_name(base):
        _LOG.warning(
            f"{out}/adapter_config.json names its base model {base!r}, as model.lm.path does; that is no name on the "
            "hub, so elsewhere the base has to be given too: PeftModel.from_pretrained(BASE, ADAPTER)"
        )
    return result


def _write(
    model: PreTrainedModel,
    out: str | Path,
    settings: ExportSettings,
    revision: str | None,
    write_weights: Callable[[Path], None],
) -> Path:
    """Writes all that is not weights, and puts everything into its place."""
    out, base, source = Path(out), _base(model), settings.tokenizer_source
    _check_place(out, [base, source])
    kept = changed_card(out)
    with replacing(out.resolve()) as place:
        write_weights(place)
        write_generation_config(model, place, base, revision, settings.end_of_turn_ids)
        copy_tokenizer(source, revision if str(source) == base else None, place)
        write_chat_template(place, settings.chat_template)
        write_origin(place, origin_of(settings, base, revision))
        write_card(place, subject_of(settings, base, revision, place, has_chat_template(place)), kept)
    if kept is not None:
        _LOG.warning(f"{out}/{CARD} was changed since it was written, and is kept; to have a new one, move it away")
    return out


def _check_place(out: Path, sources: Sequence[str | Path | None]) -> None:
    """See `check_place`. A card alone is no export: it may be all that somebody has written there so far."""
    is_export = any((out / name).is_file() for name in ("config.json", ADAPTER_FILES[0]))
    check_place(out, sources, (*_EXPORTED_FILES, CARD, PICTURE) if is_export else _EXPORTED_FILES)


def _base(model: PreTrainedModel) -> str | None:
    return model.name_or_path or None


def _dtype(name: str | None, base: str | None, revision: str | None) -> torch.dtype | None:
    """The dtype that weights are cast to; None leaves them as they are."""
    if name is not None:
        return WEIGHT_DTYPES[name]
    config = base_json(base, "config.json", revision)
    on_disk = config.get("dtype", config.get("torch_dtype"))  # the second is the name that transformers 4 wrote
    return torch.bfloat16 if on_disk == "bfloat16" else None
