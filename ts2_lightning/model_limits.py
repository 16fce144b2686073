"""The number of tokens that a model takes, by its config: in a row (its context), and in its vocabulary.

Transformers has no one name for either, and checks neither when it computes: a row longer than the context is
trained on as if nothing were, or ends in an IndexError; so does a token that the embedding has no row for.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

_TABLES = {
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small",
    "camembert", "codegen", "ctrl", "data2vec-text", "electra", "ernie", "git", "gpt2", "gpt_bigcode", "gpt_neo",
    "gptj", "imagegpt", "marian", "mbart", "megatron-bert", "mpt", "mvp", "openai-gpt", "opt", "pegasus", "plbart",
    "prophetnet", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "trocr", "whisper", "xlm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Model types that look positions up in a table, be it learned (GPT-2, OPT) or calculated once (GPT-J, MPT's ALiBi)."""

_BEHIND_PADDING = {
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Model types whose first position is the row behind that of the padding."""

_NAMES = (
    "max_position_embeddings",  # GPT-2's n_positions too, by transformers' own alias
    "n_positions",
    "n_ctx",
    "max_seq_len",  # MPT
    "max_target_positions",  # Whisper
    "max_sequence_length",
    "seq_length",
)
"""Names for the number of positions, the usual one first."""


class ModelLimits(NamedTuple):
    """The limits of a model.

    Attributes:
        model: name of the model in messages.
        context: tokens of a row for which it was made; None if its config states no number (Mamba, BLOOM).
        is_table: whether there is no position behind the context, so that a longer row cannot be computed.
        embeddings: number of rows of its embedding; a token has a row if its id is smaller.

    Example:
        >>> ModelLimits("gpt2", 1024, is_table=True, embeddings=50257).context_text
        'the context of gpt2, 1,024 tokens'
    """

    model: str
    context: int | None
    is_table: bool
    embeddings: int

    @property
    def context_text(self) -> str:
        """The context in words, where there is one."""
        return f"the context of {self.model}, {self.context:,} tokens"

    def is_behind(self, length: int) -> bool:
        """Whether a row of so many tokens has some without a position."""
        return self.is_table and self.context is not None and length > self.context


def limits_of(config: Any) -> ModelLimits:
    """The limits that a model's config states.

    The context is `max_position_embeddings`, under whatever name the architecture has for it. Where positions are
    scaled, it is what the scaled positions reach: with YaRN `original_max_position_embeddings` times the factor, with
    dynamic NTK `max_position_embeddings` times the factor, as both start from a model of that length. With linear
    scaling it is the first of these if the config has the original length; else, as with Llama 3's and LongRoPE,
    `max_position_embeddings` itself. (Files differ in whether that counts a linear factor; the smaller one is taken.)
    A sliding window bounds what a layer sees, not how long a row is.

    Args:
        config: config of a causal language model of transformers; if it has other inputs too, its part for text counts.

    Example:
        >>> from transformers import GPT2Config, LlamaConfig
        >>> limits_of(GPT2Config())
        ModelLimits(model='gpt2', context=1024, is_table=True, embeddings=50257)
        >>> yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
        >>> limits_of(LlamaConfig(max_position_embeddings=32768, rope_parameters=yarn)).context
        131072
    """
    text = config.get_text_config()
    kind = str(text.model_type)
    context = _positions(text)
    if context is not None:
        context = max(1, _scaled(context, text) - _first_position(kind, text))
    return ModelLimits(kind, context, kind in _TABLES, int(text.vocab_size))


def _positions(text: Any) -> int | None:
    """The number of positions; None where none is stated, or the model has no use for it."""
    if text.model_type == "falcon" and getattr(text, "alibi", False):
        return None  # the number is that of its rotary siblings
    for name in _NAMES:
        number = getattr(text, name, None)
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            return number
    return None


def _first_position(kind: str, text: Any) -> int:
    return int(getattr(text, "pad_token_id", None) or 0) + 1 if kind in _BEHIND_PADDING else 0


def _scaled(positions: int, text: Any) -> int:
    """The number of positions after scaling; of several kinds of layers, that of the farthest-seeing ones."""
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(parameters, Mapping):
        return positions
    layers = [layer for layer in parameters.values() if isinstance(layer, Mapping)]
    return max((_reach(positions, layer) for layer in layers), default=_reach(positions, parameters))


def _reach(positions: int, parameters: Mapping[str, Any]) -> int:
    kind = parameters.get("rope_type", parameters.get("type"))
    factor, original = parameters.get("factor"), parameters.get("original_max_position_embeddings")
    if not isinstance(factor, int | float) or kind not in ("yarn", "dynamic", "linear"):
        return positions
    if isinstance(original, int):
        return int(original * factor)
    return int(positions * factor) if kind != "linear" else positions
