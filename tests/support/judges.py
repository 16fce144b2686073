"""Tiny judges with random weights, saved as the real ones are: a Llama with one output, a DeBERTa with two."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from ts2_lightning.evaluation.judges.classifier import Classifier

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""The chat template of Llama 3."""


def byte_tokenizer(names: list[str], begin: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer that has a token for each byte, and some for control.

    Args:
        names: control tokens.
        begin: the one that begins every text; None for none.
        special: control tokens by transformers' names for them.
    """
    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(names)
    if begin is not None:
        number = backend.token_to_id(begin)
        backend.post_processor = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, number)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def write_reward_model(directory: Path, seed: int = 0, template: str | None = LLAMA_3, **changes: Any) -> Path:
    """Saves a Llama with one output and a tokenizer in the manner of Llama 3.

    Args:
        directory: directory of the model.
        seed: seed of its weights.
        template: chat template; None for none.
        changes: settings of its config that differ.
    """
    controls = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
    tokenizer = byte_tokenizer(
        controls, controls[0], bos_token=controls[0], eos_token=controls[3], pad_token=controls[4]
    )
    tokenizer.chat_template = template
    settings = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 2048,
        "initializer_range": 0.3,  # rewards that differ
    }  # fmt: skip
    torch.manual_seed(seed)
    network = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), **(settings | changes)))
    with torch.no_grad():
        network.score.weight.mul_(4)
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_similarity_model(directory: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves a DeBERTa with two outputs and a tokenizer with its control tokens."""
    controls = ["[PAD]", "[CLS]", "[SEP]"]
    tokenizer = byte_tokenizer(controls, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    settings = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 2,
        "pad_token_id": tokenizer.pad_token_id, "type_vocab_size": 2, "initializer_range": 0.5,
    }  # fmt: skip
    torch.manual_seed(seed)
    network = DebertaV2ForSequenceClassification(DebertaV2Config(vocab_size=len(tokenizer), **(settings | changes)))
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def count_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of texts that are classified together from here on, in this process."""
    seen: list[int] = []
    real = Classifier._numbers

    def counted(self: Classifier, rows: Any) -> list[list[float]]:
        seen.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(Classifier, "_numbers", counted)
    return seen


def edit_json(file: Path, **changes: Any) -> None:
    """Changes entries of a JSON file; None takes one away."""
    plain = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))
