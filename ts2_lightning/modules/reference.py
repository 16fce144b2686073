"""The frozen reference model of an objective that needs one: what training began with, or another model.

Below an adapter it is the model that is trained, without the adapter: no memory. Else, and where another model is
named, it is a frozen copy, loaded from its files, also in a run that goes on: no checkpoint holds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ts2_lightning.losses import TokenLoss
from ts2_lightning.modules.adapters import is_adapted
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.modules.head import backbone, output_head
from ts2_lightning.modules.language_model import check_model_files, read_limits, settle_embeddings
from ts2_lightning.types import ReferenceOutput, UserError


class ReferenceModel(nn.Module):
    """A model that is asked for its distributions, in evaluation mode and without a gradient.

    Args:
        model: A copy of the base model, or another model, which is frozen here; or the trained model itself, where it
            has an adapter.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.is_copy = not is_adapted(model)
        self._model = (model,)  # in a tuple, so that a trained model has no second place in the network
        if self.is_copy:
            self.model = model.requires_grad_(False)
        head = output_head(model)
        self._head = (HeadWithoutAdapter(head) if any(map(_is_adapter, head.modules())) else head,)

    @property
    def head(self) -> nn.Module:
        """The reference's own head: a plain one stays plain, so that both models round alike."""
        return self._head[0]

    def forward(self, inputs: dict[str, Tensor], supervised: Tensor) -> ReferenceOutput:
        """Hidden states of the supervised tokens, and the head for them.

        Args:
            inputs: What the backbone of the trained model is called with.
            supervised: Places [N] of the supervised tokens in the flattened sequences.
        """
        (model,) = self._model
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), without_adapter(model):
                states = backbone(model)(**inputs, use_cache=False).last_hidden_state
        finally:
            model.train(training)
        return ReferenceOutput(states.flatten(0, 1).index_select(0, supervised), self.head)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Nothing: the base model's own files have it."""
        state: dict[str, Any] = kwargs.get("destination", args[0] if args else {})
        return state


class HeadWithoutAdapter(nn.Module):
    """A head as it is without its adapter.

    Args:
        head: A head with or without an adapter, which keeps its place in the model.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = (head,)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Logits [*, K] of hidden states [*, H]."""
        (head,) = self._head
        with without_adapter(head):
            logits: Tensor = head(hidden_states)
        return logits


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within it PEFT's layers of a model, if there are any, are the layers that they adapt.

    PEFT's `enable_adapters` would have the adapter's weights need no gradient in the meantime, and a strategy that
    shards them would take that for good.
    """
    layers: list[Any] = [module for module in model.modules() if _is_adapter(module)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _is_adapter(module: nn.Module) -> bool:
    return hasattr(module, "_disable_adapters")  # as PEFT's layers have it, and need not be imported to tell


def reference_config(lm: LanguageModelConfig, path: str | None) -> LanguageModelConfig | None:
    """The model that the frozen copy is loaded as; None where the reference is the trained model without its adapter.

    Args:
        lm: The model that is trained.
        path: Another model as reference, a directory or a name on the hub; None for the base model.
    """
    if path is not None:
        return LanguageModelConfig(
            path,
            dtype=lm.dtype,
            attn_implementation=lm.attn_implementation,
            deterministic_attention=lm.deterministic_attention,
        )
    return None if lm.adapter is not None else replace(lm, gradient_checkpointing=False)


def read_by(loss: TokenLoss, path: str | None) -> str | None:
    """The path of another model as reference, as it is.

    Raises:
        UserError: there is one, and the loss reads no reference.
    """
    if path is not None and not loss.needs_reference:
        raise UserError(
            f"model.reference: {type(loss).__name__} reads no reference model, got {path!r}; leave it out, or wrap the "
            "loss in ReferenceAnchored or ReferenceSuppression"
        )
    return path


def check_reference(lm: LanguageModelConfig, loss: TokenLoss, path: str | None = None) -> None:
    """Looks at the files of the reference of a loss that needs one, as far as that takes no time.

    Args:
        lm: The model that is trained.
        loss: The objective.
        path: As of `reference_config`.

    Raises:
        UserError: the start of training is in no file, where a run that goes on could find it again; or the other model
            cannot be loaded, or has another vocabulary.
    """
    if not loss.needs_reference:
        return
    if path is None:
        if lm.init != "pretrained":
            raise UserError(
                "model.loss: the objective is anchored to the model that training began with, and model.lm.init is "
                "random, of which no file is kept; set model.lm.init to pretrained, or model.reference to a model"
            )
        return
    with named_as_reference():
        check_model_files(LanguageModelConfig(path))
    if lm.resize_embeddings is not True:  # how many rows that means is known once the tokenizer is there
        check_same_vocabulary(lm, path)


def check_same_vocabulary(lm: LanguageModelConfig, path: str) -> None:
    """Raises a `UserError` if another model, by its config.json, has not as many tokens as the one that is trained."""
    with named_as_reference():
        tokens = read_limits(LanguageModelConfig(path)).embeddings
    wanted = read_limits(settle_embeddings(lm)).embeddings
    if tokens != wanted:
        raise UserError(
            f"model.reference: {path!r} has {tokens:,} tokens in its vocabulary, and the model that is trained "
            f"{wanted:,}; they are compared token by token, so take a model with the same tokenizer"
        )


@contextmanager
def named_as_reference() -> Iterator[None]:
    """Has errors about a model's files name the setting of the reference."""
    try:
        yield
    except UserError as error:
        setting, colon, rest = str(error).partition(":")
        if setting not in ("model.lm.path", "model.lm"):
            raise
        raise type(error)(f"model.reference{colon}{rest}") from error
