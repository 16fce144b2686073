"""Weights between a base model and the model that was trained from it: base + share (tuned - base).

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.export.hub_names import LoadedNames, NamedTensors
from ts2_lightning.export.rounding import ExportedWeight, Rounding
from ts2_lightning.export.shards import as_written
from ts2_lightning.modules.buffers import persistent_buffers
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.modules.model_files import weight_paths
from ts2_lightning.types import UserError


class Interpolation:
    """The weights between a base model, read from its files one at a time, and a tuned one.

    Buffers and integers are the tuned model's. Of an embedding or a head that has got new rows, those that the base has
    too are interpolated, and the new ones are the tuned model's.

    Args:
        structure: tuned model on any device; its values are not read.
        base: directory or hub name of the base model.
        revision: revision of the base model on the hub; None is the newest.
        share: share of the way from the base to the tuned model, from 0 to 1.

    Attributes:
        new_rows: number of rows of the tuned model alone, by the name of the weight.

    Raises:
        UserError: if the base model's files are not there.
    """

    def __init__(self, structure: PreTrainedModel, base: str, revision: str | None, share: float) -> None:
        self.share = share
        self.new_rows: dict[str, int] = {}
        self._base, self._revision = base, revision
        self._loaded_name = LoadedNames(structure)
        self._ties: dict[str, str] = structure.all_tied_weights_keys
        self._buffers = persistent_buffers(structure).keys()
        embedding: Any = structure.get_input_embeddings()
        self._rows: int = embedding.weight.shape[0]

    @property
    def about_new_rows(self) -> str:
        """One line that says which rows were not interpolated."""
        rows = max(self.new_rows.values())
        return (
            f"the {rows:,} rows of {' and '.join(self.new_rows)} that the base model {self._base!r} does not have are "
            "those of the tuned model"
        )

    def written(self, tensors: NamedTensors, dtype: torch.dtype, rounding: Rounding) -> Iterator[tuple[str, Tensor]]:
        """The weights between, as they are written.

        Args:
            tensors: exact weights of the tuned model, under the names of the hub's checkpoints.
            dtype: dtype in which weights are written.
            rounding: gets what is rounded.
        """
        for name, tuned in tensors:
            exact = self.between(name, tuned)
            tensor = as_written(name, exact, dtype)
            if exact is not tuned:
                rounding.add(ExportedWeight(name, exact, dtype, lambda name=name: self._read(name)), tensor)  # type: ignore[misc]
            yield name, tensor

    def between(self, name: str, tuned: Tensor) -> Tensor:
        """A weight between, in float32 at least; what is no weight is the tuned model's.

        Raises:
            UserError: if the base model does not have it, or in a shape that does not fit.
        """
        if not tuned.is_floating_point() or self._loaded_name(name) in self._buffers:
            return tuned
        base = self._read(name)
        rows = base.shape[0] if base.dim() else 0
        has_new_rows = base.dim() and base.shape[1:] == tuned.shape[1:] and rows < tuned.shape[0] == self._rows
        if base.shape != tuned.shape and not has_new_rows:
            raise UserError(
                f"the base model {self._base!r} has {name} in the shape {[*base.shape]} and the tuned one in "
                f"{[*tuned.shape]}, so there is nothing between them; is it the model that the run began with?"
            )
        dtype = torch.promote_types(torch.promote_types(base.dtype, tuned.dtype), torch.float32)
        if not has_new_rows:
            return self._mixed(base.to(dtype, copy=True), tuned)
        self.new_rows[name] = tuned.shape[0] - rows
        return torch.cat([self._mixed(base.to(dtype, copy=True), tuned[:rows]), tuned[rows:].to(dtype)])

    def _mixed(self, base: Tensor, tuned: Tensor) -> Tensor:
        """In the place of the base, which stays itself for a share of 0: a sum would lose the sign of its zeros."""
        return base.lerp_(tuned.to(base.dtype), self.share) if self.share else base

    def _read(self, name: str) -> Tensor:
        """A weight of the base model, mapped into memory; of a tied one the other will do."""
        own = self._loaded_name(name)
        others = [self._ties.get(own), *(alias for alias, source in self._ties.items() if source == own)]
        place = next((self._places[other] for other in (own, *others) if other in self._places), None)
        if place is None:
            raise UserError(
                f"the base model {self._base!r} has no weight {name}, so there is nothing between it and the tuned "
                "one; is it the model that the run began with?"
            )
        stored, opened = place
        tensor: Tensor = opened.get_tensor(stored)
        return tensor

    @cached_property
    def _places(self) -> dict[str, tuple[str, Any]]:
        """By the name that a loaded model has for it: each weight's own name in its file, and the open file."""
        try:
            files = weight_paths(self._base, self._revision)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the base model {self._base!r}, without which there is nothing between it and the tuned one: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        every = ((name, opened) for opened in _opened(files) for name in opened.keys())  # noqa: SIM118 (no mapping)
        return {self._loaded_name(name): (name, opened) for name, opened in every}


def check_start(lm: LanguageModelConfig) -> None:
    """Raises a `UserError` unless a training began with the weights that its base model's files have."""
    if lm.init == "random":
        raise UserError(
            "export toward_base: the training began with random weights, which are kept nowhere; leave it out"
        )
    if lm.adapter is not None and lm.adapter.path is not None:
        raise UserError(
            f"export toward_base: the training began with the adapter {lm.adapter.path!r}, so a smaller factor does "
            "not lead to where it began; leave it out"
        )


def between(structure: PreTrainedModel, share: float, revision: str | None) -> Interpolation | None:
    """The interpolation of a model with the base model at its `name_or_path`; None for the tuned model itself."""
    if share == 1:
        return None
    if not structure.name_or_path:
        raise UserError("export toward_base: the model has no name_or_path, where its base model's files would lie")
    return Interpolation(structure, structure.name_or_path, revision, share)


def _opened(files: Iterable[str]) -> Iterator[Any]:
    for file in files:
        opened: Any = safe_open(Path(file), "pt")
        yield opened.__enter__()
