"""A random Llama of 14 words with its own chat template, written as a base model on disk would be."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = "<s> </s> <pad> <|user|> <|assistant|> <|end|> name a fruit the answer is pear ."
WORDS = TEXT.split()
END = WORDS.index("<|end|>")
EOS = WORDS.index("</s>")

STALE_TEMPLATE = "{% for m in messages %}stale {{ m['content'] }}{% endfor %}"
TRAINED_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_base(directory: Path, *, dtype: str = "float32", tied: bool = False, seed: int = 0, width: int = 16) -> Path:
    """Model and tokenizer, as a base model's directory has them: its closing token is no end of sequence yet."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, bos_token_id=0, eos_token_id=EOS,
        pad_token_id=2, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(directory)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    tokenizer.save_pretrained(directory)
    edit(directory / "tokenizer_config.json", chat_template=STALE_TEMPLATE, tokenizer_class="PreTrainedTokenizerFast")
    edit(directory / "generation_config.json", eos_token_id=EOS, temperature=0.6, do_sample=False)
    return directory


def edit(path: Path, **entries: object) -> None:
    """Set entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}, indent=2))


def teach_to_stop(model: LlamaForCausalLM, after: int) -> None:
    """Set an untied head so that greedy decoding answers `<|assistant|>` with `after`, and that with `<|end|>`."""
    with torch.no_grad():
        for layer in model.model.layers:  # only the residual stream is left: the last token decides the next one
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        states = model.model.embed_tokens.weight / model.model.embed_tokens.weight.norm(dim=1, keepdim=True)
        model.lm_head.weight.zero_()
        model.lm_head.weight[after] = 10 * states[WORDS.index("<|assistant|>")]
        model.lm_head.weight[END] = 10 * states[after]
