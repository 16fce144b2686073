"""Small tokenizers that behave like the large ones in what matters here, and rows."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTROLS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|im_start|>", "<|im_end|>", "<think>", "</think>",
]  # fmt: skip
CORPUS = [
    "Hello there, how are you today? I am fine, thank you. Tell me a story about the sea.",
    "user assistant system User: Assistant: System:\n\nThe answer is 42.\nOnce upon a time there was a girl.",
    "def f(x):\n    return x + 1\n\n  indented   text\t tabs",
] * 4
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE split like Llama-3's and Qwen's, with the control tokens of both."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([token for token in CONTROLS if "think" not in token])
    backend.add_tokens(["<think>", "</think>"])  # not special, as in Qwen-3
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with word-initial spaces inside the tokens and one before the text, like Llama-2's and Mistral's."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([*CORPUS, "[INST] [/INST]"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of user, assistant, user, ... with these contents."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant") * len(contents)
    return first + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    """Write rows as JSON Lines, gzipped if the name says so."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def token_rows(lengths: list[int]) -> list[dict]:
    """Rows of the format `tokens`; row i consists of the token i + 1."""
    return [{"input_ids": [index + 1] * length} for index, length in enumerate(lengths)]


def rank_of(world_size: int, rank: int, global_step: int = 0) -> SimpleNamespace:
    """As much of the trainer of one of several ranks as the datamodule looks at."""
    return SimpleNamespace(
        distributed_sampler_kwargs={"num_replicas": world_size, "rank": rank},
        accumulate_grad_batches=1,
        global_step=global_step,
        limit_train_batches=1.0,
        val_check_interval=1.0,
        is_global_zero=False,
        fit_loop=SimpleNamespace(is_resuming=False),
    )
