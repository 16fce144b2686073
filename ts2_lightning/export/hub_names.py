"""From a model's names of its weights to those of the hub's checkpoints.

transformers 5 renames, fuses and splits tensors when it loads (the experts of a mixture become one tensor), and
reverses that when it saves, on all weights at once. Here the same reversal runs on a few tensors at a time.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ts2_lightning.export.base_files import base_file
from ts2_lightning.json_files import read_json

NamedTensors = Iterable[tuple[str, Tensor]]


def plain_structure(model: PreTrainedModel) -> PreTrainedModel:
    """The same model on the meta device, without its adapter and its quantisation."""
    config = deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        structure = type(model)(config)
    if hasattr(model, "_weight_conversions"):
        structure._weight_conversions = model._weight_conversions
    return structure


def recall_conversions(structure: PreTrainedModel, base: str, revision: str | None) -> None:
    """Makes a model that was built, not loaded, be written in the layout of its base model's files.

    `from_pretrained` would remember the conversions that it has used; here they follow from the names in the files. If
    those are unknown, the layout is the usual one of the architecture.
    """
    names = _stored_names(base, revision)
    if not names:
        return
    mapping = get_model_conversion_mapping(structure)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    for name in names:
        rename_source_key(name, renamings, converters)
    used: Any = [entry for entry in mapping if entry.was_used()]
    structure._weight_conversions = used


def _stored_names(base: str, revision: str | None) -> list[str]:
    """The names in a base model's files; none if weights would have to be fetched for them."""
    index = base_file(base, SAFE_WEIGHTS_INDEX_NAME, revision)
    if index is not None:
        return sorted(read_json(index)["weight_map"])
    single: Path | None = base_file(base, SAFE_WEIGHTS_NAME, revision, fetch=False)
    if single is None:
        return []
    with safe_open(single, "pt") as opened:
        return sorted(opened.keys())


class LoadedNames:
    """The names that a loaded model has for weights in files, which may lack the prefix of the model's body.

    Weights that are fused on loading keep names of their own.

    Args:
        structure: model on any device; its values are not read.
    """

    def __init__(self, structure: PreTrainedModel) -> None:
        mapping = get_model_conversion_mapping(structure)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._prefix = structure.base_model_prefix
        self._parameters = structure.state_dict()

    def __call__(self, stored: str) -> str:
        """The name of a weight whose name in a file is given."""
        return rename_source_key(stored, self._renamings, [], self._prefix, self._parameters)[0]


class Ties:
    """Leaves out weights that are written under another name already.

    Args:
        structure: model whose weights are tied.

    Attributes:
        parted: names of tied weights whose values differ, since training has parted them.
    """

    def __init__(self, structure: PreTrainedModel) -> None:
        self._sources: dict[str, str] = structure.all_tied_weights_keys
        self.parted: list[str] = []

    def once(self, tensors: NamedTensors) -> Iterator[tuple[str, Tensor]]:
        """The tensors, tied ones under one name."""
        seen: dict[str, Tensor] = {}
        tied = {*self._sources.keys(), *self._sources.values()}
        for name, tensor in tensors:
            source = self._sources.get(name, name)
            if source not in seen:
                if name in tied:
                    seen[source] = tensor
                yield source, tensor
            elif not torch.equal(tensor, seen[source]):
                self.parted.append(name)
                yield name, tensor


def in_file_layout(structure: PreTrainedModel, tensors: NamedTensors) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names, and in the shapes, that the hub's checkpoints have them in.

    Args:
        structure: model on any device; its values are not read.
        tensors: weights of the model under its own names, in any order.
    """
    ignored = structure._keys_to_ignore_on_save or ()
    group_of = {name: group for group in _groups(structure) for name in group.names}
    waiting: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name in ignored:
            continue
        waiting[name] = tensor
        names = group_of[name].names
        if all(other in waiting for other in names):
            yield from revert_weight_conversion(structure, {other: waiting.pop(other) for other in names}).items()
    yield from revert_weight_conversion(structure, waiting).items()  # groups of which a part is tied to another


class _Group(NamedTuple):
    """Weights that must be converted together."""

    names: list[str]


def _groups(structure: PreTrainedModel) -> list[_Group]:
    """Reverted one by one, weights that belong together yield the same names."""
    groups: dict[str, _Group] = {}
    for name, tensor in structure.state_dict().items():
        meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        first = next(iter(revert_weight_conversion(structure, {name: meta})))
        groups.setdefault(first, _Group([])).names.append(name)
    return list(groups.values())
