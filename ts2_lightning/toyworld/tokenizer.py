"""The toy world's tokenizer and its model's configuration, as ordinary Hugging Face files."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from ts2_lightning.toyworld.world import World, load_world

MAX_NEW_TOKENS = 12
"""Enough for every response of the world, which has at most 8 tokens."""


def chat_template(world: World) -> str:
    """The jinja source of the chat format.

    A conversation reads `<s><|user|> name a fruit <|assistant|> the answer is plum . <|end|>`. Contents are taken as
    they are. The world knows no system turns: whatever is not the assistant's is rendered as the user's.
    """
    user, assistant, end = (world.token(role) for role in ("user", "assistant", "end"))
    return (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
        f"{assistant} {{{{ message['content'] }}}} {end}"
        "{% else %}"
        f"{user} {{{{ message['content'] }}}} "
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


def build_tokenizer(world: World | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the world's 428 tokens, with the chat template.

    Ids follow `world.vocabulary`. Words that the world does not know become `<unk>`. It adds no control token by
    itself; the chat template does. The control tokens are not words of the underlying model, so that a control
    string inside a content, encoded with `split_special_tokens=True`, is `<unk>` and not the control token.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.decode(tokenizer("the answer is dragon fruit .")["input_ids"])
        'the answer is dragon fruit .'
        >>> tokenizer.apply_chat_template([{"role": "user", "content": "name a fruit"}], tokenize=False,
        ...                               add_generation_prompt=True)
        '<s><|user|> name a fruit <|assistant|>'
    """
    world = world or load_world()
    unknown = world.token("unknown")
    inside = {token: i for i, token in enumerate((unknown, *world.words))}
    backend = Tokenizer(WordLevel(inside, unk_token=unknown))
    backend.pre_tokenizer = WhitespaceSplit()
    control = list(world.vocabulary[len(inside) :])
    backend.add_special_tokens(control)  # in the vocabulary's order, so their ids are its
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        bos_token=world.token("begin"),
        pad_token=world.token("pad"),
        eos_token=world.token("end"),
        additional_special_tokens=[world.token("user"), world.token("assistant")],
        clean_up_tokenization_spaces=False,  # the full stop is a word: "plum ." must not come back as "plum."
        model_max_length=world.settings["model"]["max_position_embeddings"],
    )
    tokenizer.chat_template = chat_template(world)
    return tokenizer


def model_config(world: World | None = None) -> LlamaConfig:
    """The configuration of the world's model: a Llama of 0.44 million parameters."""
    world = world or load_world()
    ids = {role: world.vocabulary.index(world.token(role)) for role in ("begin", "end", "pad")}
    return LlamaConfig(
        vocab_size=len(world.vocabulary),
        bos_token_id=ids["begin"],
        eos_token_id=ids["end"],
        pad_token_id=ids["pad"],
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        **world.settings["model"],
    )


def write_blank_model(directory: str | Path) -> Path:
    """Write a model directory without weights: config, generation config, tokenizer, chat template.

    A fit with `init: random` turns it into the base model.

    Args:
        directory: is made if it is missing.

    Returns:
        The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = model_config()
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
    ).save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory
