"""Tokenizers of every kind, with the control strings of all bundled templates, and what templates make of answers."""

import json
from collections.abc import Callable
from pathlib import Path

from data_helpers import CORPUS, byte_level_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.toyworld import build_tokenizer

CONTROLS = sorted({control for template in TEMPLATES.values() for control in template.controls})

ANSWERS: dict[str, Callable[[str, str], str]] = {  # what is to be learnt of an answer, given the eos token
    "llama3": lambda answer, eos: answer.strip() + "<|eot_id|>",
    "chatml": lambda answer, eos: answer + "<|im_end|>",
    "gemma": lambda answer, eos: answer.strip() + "<end_of_turn>",
    "mistral": lambda answer, eos: " " + answer.strip() + eos,
    "mistral_tekken": lambda answer, eos: answer.strip() + eos,
    "olmo": lambda answer, eos: answer + eos,
    "phi3": lambda answer, eos: answer + "<|end|>",
    "phi4": lambda answer, eos: answer.strip() + "<|im_end|>",
    "tofu": lambda answer, eos: " " + answer.strip() + " \n<|/response|>\n" + eos,
    "plain": lambda answer, eos: answer.strip() + eos,
}
SYSTEM = [name for name in TEMPLATES if name != "tofu"]
TOOL = ["llama3", "chatml", "plain"]


def with_controls(
    tokenizer: PreTrainedTokenizerFast, lstrip: bool = False, rstrip: bool = False
) -> PreTrainedTokenizerFast:
    """Add the control strings that it lacks as special tokens."""
    absent = [control for control in CONTROLS if control not in tokenizer.get_vocab()]
    tokens = [AddedToken(control, lstrip=lstrip, rstrip=rstrip, special=True, normalized=False) for control in absent]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    """Like Llama 3's and Qwen's."""
    return with_controls(byte_level_tokenizer())


def _byte_level_bare() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def phi3_like() -> PreTrainedTokenizerFast:
    """Byte level without bos; control tokens take in the white space after them."""
    return with_controls(_byte_level_bare(), rstrip=True)


def phi4_like() -> PreTrainedTokenizerFast:
    """Byte level without bos; control tokens take in the white space around them."""
    return with_controls(_byte_level_bare(), lstrip=True, rstrip=True)


def _sentencepiece(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Train a BPE whose words carry their space, with a token for every byte."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = model["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    merges = [tuple(merge) for merge in model["merges"]]
    backend.model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return with_controls(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )


def metaspace() -> PreTrainedTokenizerFast:
    """Like Llama 2's and Mistral's as they are now: a space before the first word of a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return _sentencepiece(backend)


def prepending() -> PreTrainedTokenizerFast:
    """Like Llama 2's of old: a space after every special token."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentencepiece(backend)


def wordpiece() -> PreTrainedTokenizerFast:
    """Like BERT's, for ASCII; it drops white space."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["Hello", "there", "story", "##ing", "##er", "User", "assistant", "instruct"]
    vocabulary = {
        piece: number for number, piece in enumerate(["[UNK]", *letters, *(f"##{c}" for c in letters), *words])
    }
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1000))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    return with_controls(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]")
    )


def toyworld() -> PreTrainedTokenizerFast:
    """The toy world's, of whole words."""
    return with_controls(build_tokenizer())


def stories(shared_data: Path) -> PreTrainedTokenizerFast:
    """The pretrained SentencePiece model, which drops spaces that are doubled."""
    return with_controls(AutoTokenizer.from_pretrained(shared_data / "models" / "stories260K"))
