"""A trained model as a directory that transformers, and what reads its format (vLLM, ...), loads and serves.

`export_model` is a function of a model and the names of its sources; it knows nothing of Lightning. It writes

- Weights: safetensors, in the layout of the hub's checkpoints (transformers renames and splits what it
  fused on loading), tied weights once.
- `config.json`: the base model's file with the exported dtype, and whatever training changed about the
  architecture. Runtime switches such as `use_cache` stay as the base had them.
- Tokenizer: the source's own files, byte for byte, but for two entries of `tokenizer_config.json`: a
  stale `chat_template`, and a `tokenizer_class` that only transformers 5 knows. (A tokenizer saved anew
  by transformers 5 may be refused by vLLM.)
- `chat_template.jinja`: the template that was trained. transformers prefers this file to an entry
  of `tokenizer_config.json`.
- `generation_config.json`: the base model's, whose `eos_token_id` also lists the tokens that close a
  turn. Without them a chat model trained from a base model does not stop.
"""

import json
import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from ts2_lightning.types import UserError

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
)
"""Patterns of the files that make up a tokenizer, in all the layouts transformers has had."""

WEIGHT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What training may switch in the model's config, which says nothing about the model itself.
_RUNTIME_KEYS = {"use_cache", "dtype", "torch_dtype", "transformers_version", "architectures"}


def export_model(
    model: PreTrainedModel,
    out: str | Path,
    *,
    tokenizer_source: str | Path,
    chat_template: str | None,
    end_of_turn_ids: Sequence[int],
    dtype: str | None = None,
    revision: str | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """Write `model` as a transformers directory that answers through the trained chat template, and stops.

    The directory is written beside `out` under a hidden name and renamed when complete; an existing export at
    `out` is replaced then, and not before. Custom code is never run or copied (`trust_remote_code` stays
    off).

    Args:
        model: the model; its `name_or_path` says where the base model's config files are.
        out: the directory to make.
        tokenizer_source: directory or hub name whose tokenizer files are copied.
        chat_template: Jinja source of the trained template; None keeps what the tokenizer's files have.
        end_of_turn_ids: ids of the tokens that close an assistant turn.
        dtype: one of `WEIGHT_DTYPES`; None: bfloat16 if the base model on disk is bfloat16, else the
            weights' own dtype.
        revision: of the base model on the hub; of the tokenizer too, if it is the base model's own.
        state_dict: weights to write instead of the model's current ones, under the model's own names.

    Returns:
        `out`, as a `Path`.

    Raises:
        UserError: if `out` is one of the sources, or a directory that holds something else than a model; if
            no tokenizer files are found; if `dtype` is unknown; if the weights are sharded over ranks.
    """
    out = Path(out)
    base = model.name_or_path or None
    _check_place(out, [base, tokenizer_source])
    weights = dict(model.state_dict()) if state_dict is None else dict(state_dict)
    _check_whole(weights)
    kind = _weight_dtype(dtype, base, revision)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed export may have left
    partial.mkdir(parents=True)
    try:
        written = _write_weights(model, _cast(weights, kind), partial)
        _write_config(model, partial, base, revision, written)
        _write_generation_config(model, partial, base, revision, end_of_turn_ids)
        _copy_tokenizer(tokenizer_source, revision if str(tokenizer_source) == base else None, partial)
        _write_chat_template(partial, chat_template)
        _swap(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _check_place(out: Path, sources: Sequence[str | Path | None]) -> None:
    for source in sources:
        if source is not None and Path(source).exists() and Path(source).resolve() == out.resolve():
            raise UserError(f"export directory {out} is the model's own source: choose another one")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").exists():
        raise UserError(f"export directory {out} holds something that is not a model: choose another one")
    if out.exists() and not out.is_dir():
        raise UserError(f"export directory {out} is a file: choose another one")


def _check_whole(weights: dict[str, Tensor]) -> None:
    for name, tensor in weights.items():
        sharded = hasattr(tensor, "full_tensor") or hasattr(tensor, "ds_id") or tensor.device.type == "meta"
        if sharded:
            raise UserError(f"cannot export {name}: it is sharded over ranks, so export from a checkpoint instead")


def _weight_dtype(dtype: str | None, base: str | None, revision: str | None) -> torch.dtype | None:
    if dtype is not None:
        if dtype not in WEIGHT_DTYPES:
            raise UserError(f"export dtype must be null or one of {', '.join(WEIGHT_DTYPES)}, got {dtype!r}")
        return WEIGHT_DTYPES[dtype]
    config = _base_json(base, "config.json", revision)
    on_disk = config.get("dtype", config.get("torch_dtype"))  # the second is the name that transformers 4 wrote
    return torch.bfloat16 if on_disk == "bfloat16" else None


def _cast(weights: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copies on the CPU; names that share one tensor share its copy, so that ties are still seen as such."""
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    result = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in copies or tensor.numel() == 0:
            kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            copies[key] = tensor.detach().to(device="cpu", dtype=kind)
        result[name] = copies[key]
    return result


def _write_weights(model: PreTrainedModel, weights: dict[str, Tensor], directory: Path) -> str:
    """Let transformers write the weights, and leave the model as it was; returns the dtype's name."""
    config = model.config
    before = (config.dtype, config.architectures, model.generation_config)
    bars = transformers_logging.is_progress_bar_enabled()
    floating = next(tensor for tensor in weights.values() if tensor.is_floating_point())
    try:
        transformers_logging.disable_progress_bar()
        model.generation_config = GenerationConfig()  # transformers refuses to save some that the hub has
        model.save_pretrained(directory, state_dict=weights)
    finally:
        config.dtype, config.architectures, model.generation_config = before
        if bars:
            transformers_logging.enable_progress_bar()
    return str(floating.dtype).removeprefix("torch.")


def _write_config(model: PreTrainedModel, directory: Path, base: str | None, revision: str | None, dtype: str) -> None:
    """The base model's file, with the dtype and what training changed about the architecture."""
    path = directory / "config.json"
    own: dict[str, Any] = json.loads(path.read_text())
    original = _base_json(base, "config.json", revision)
    if original.get("model_type") != own.get("model_type"):
        original = {}
    result = original or own
    if original:
        kept = AutoConfig.for_model(**original).to_dict()
        now = model.config.to_dict()
        changed = {key for key in now if key not in _RUNTIME_KEYS and not key.startswith("_")}
        result |= {key: now[key] for key in sorted(changed) if kept.get(key) != now[key]}
    result.pop("torch_dtype", None)
    result |= {"dtype": dtype, "architectures": own["architectures"]}
    _write_json(path, result)


def _write_generation_config(
    model: PreTrainedModel,
    directory: Path,
    base: str | None,
    revision: str | None,
    end_of_turn_ids: Sequence[int],
) -> None:
    settings = _base_json(base, "generation_config.json", revision)
    if not settings and model.generation_config is not None:
        settings = model.generation_config.to_diff_dict()
    # With this mark transformers would make the settings anew from config.json, and forget the closing
    # tokens.
    settings.pop("_from_model_config", None)
    eos = settings.get("eos_token_id")
    if eos is None:
        eos = model.config.eos_token_id
    known = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    ids = list(dict.fromkeys([*known, *(int(token) for token in end_of_turn_ids)]))
    if ids:
        settings["eos_token_id"] = ids[0] if len(ids) == 1 else ids
    _write_json(directory / "generation_config.json", settings)


def _copy_tokenizer(source: str | Path, revision: str | None, directory: Path) -> None:
    folder = Path(source)
    if not folder.is_dir():
        folder = _download_tokenizer(str(source), revision)
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in TOKENIZER_FILES)
    ]
    if not any(file.name != "chat_template.jinja" for file in files):
        raise UserError(f"no tokenizer files in {source}: name the directory or hub model they come from")
    for file in files:
        shutil.copyfile(file, directory / file.name)  # follows the hub cache's links


def _download_tokenizer(name: str, revision: str | None) -> Path:
    """The tokenizer's files in the hub's cache, fetched where they are not there yet."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
    except (OSError, ValueError) as error:  # the hub's errors are of these kinds
        reason = " ".join(str(error).split())
        raise UserError(f"cannot find the tokenizer files of {name!r}, here or on the hub ({reason[:200]})") from error


def _write_chat_template(directory: Path, template: str | None) -> None:
    """Put the trained template where every reader finds it, and leave no other one beside it."""
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    before = dict(config)
    if template is not None and "chat_template" in config:
        config["chat_template"] = template
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name everywhere else; transformers 5 knows both
    if config != before:
        _write_json(path, config)


def _base_json(base: str | None, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of the base model, from its directory or the hub's cache; empty if there is none."""
    if base is None:
        return {}
    if Path(base).is_dir():
        path: str | None = os.path.join(base, name)
    else:
        try:
            path = cached_file(base, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        except OSError:  # no such repository: a name that was never one, or no connection and not in the cache
            path = None
    if path is None or not os.path.exists(path):
        return {}
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _swap(new: Path, place: Path) -> None:
    """Rename `new` to `place`; an old directory there steps aside first, and comes back if that fails."""
    old = place.with_name(f".{place.name}.old")
    if old.exists() and not place.exists():
        old.rename(place)  # an export that was killed between its two renames
    shutil.rmtree(old, ignore_errors=True)
    replaces = place.exists()
    if replaces:
        place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        if replaces:
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
