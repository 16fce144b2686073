"""The sampler against transformers' own greedy search, plain forward passes, and the distributions it draws from."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerBase

from tests.callbacks.tiny_llama import END, EOS, TRAINED_TEMPLATE, WORDS, edit, teach_to_stop, write_base
from ts2_lightning.generation import Decoder, Sample, sample
from ts2_lightning.generation.sampling import draw, prompt_ids
from ts2_lightning.types import UserError

PROMPTS = ["name a fruit", "name", "the answer is pear . name a fruit"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_base(tmp_path_factory.mktemp("base"), width=32)
    edit(directory / "generation_config.json", repetition_penalty=5.0, eos_token_id=EOS, top_k=3, do_sample=True)
    return directory


@pytest.fixture
def model(place: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(place, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 6  # a random model is all but uniform
    return model


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(place)


def own_log_probabilities(model: LlamaForCausalLM, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Of every token of a response, from one plain forward pass of prompt and response."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def test_temperature_zero_is_greedy_search(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    answers = sample(model, tokenizer, PROMPTS, decoder=Decoder(temperature=0), max_new_tokens=9, eos_ids=[])
    for prompt, [answer] in zip(PROMPTS, answers, strict=True):
        ids: Any = torch.tensor([tokenizer(prompt)["input_ids"]])
        plain = ids
        for _ in range(9):
            plain = torch.cat([plain, model(input_ids=plain).logits[:, -1:].argmax(-1)], dim=1)
        assert answer.ids == plain[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "decoder",
    [Decoder(), Decoder(temperature=2.0, top_k=5, top_p=0.9), Decoder("sparsemax"), Decoder("entmax", 1.3, 0.5)],
    ids=str,
)
def test_log_probabilities_are_those_of_the_model(
    decoder: Decoder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Before temperature, truncation and projection, and with prompts of several lengths in a batch."""
    answers = sample(model, tokenizer, PROMPTS, n=3, decoder=decoder, max_new_tokens=6, seed=3)
    for prompt, samples in zip(PROMPTS, answers, strict=True):
        assert len(samples) == 3
        for found in samples:
            expected = own_log_probabilities(model, prompt_ids(tokenizer, prompt), found.ids)
            torch.testing.assert_close(torch.tensor(found.log_probabilities), expected, rtol=1e-4, atol=1e-4)
            assert found.mean_probability == pytest.approx(expected.exp().mean().item(), rel=1e-4)


def test_a_response_depends_on_nothing_but_its_seed(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    def ids(*args: Any, **settings: Any) -> list[list[list[int]]]:
        return [[one.ids for one in samples] for samples in sample(model, tokenizer, *args, n=4, **settings)]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    together = ids(PROMPTS, max_new_tokens=8, batch_size=12)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert ids(PROMPTS, max_new_tokens=8, batch_size=1) == together
    assert ids(PROMPTS, max_new_tokens=8, batch_size=5) == together
    assert ids(PROMPTS[:1], max_new_tokens=8) == together[:1]
    assert ids(PROMPTS, max_new_tokens=8, seed=1) != together
    assert len({tuple(one) for one in together[0]}) > 1  # samples of one prompt differ


@pytest.mark.parametrize("decoder", [Decoder(), Decoder("sparsemax"), Decoder(temperature=0.7, top_k=4, top_p=0.95)])
def test_tokens_come_as_often_as_the_distribution_says(
    decoder: Decoder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    n = 3000
    [samples] = sample(model, tokenizer, ["name a"], n, decoder, max_new_tokens=1, eos_ids=[], batch_size=n)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids(tokenizer, "name a")])).logits[:, -1]
    expected = decoder(logits).softmax(-1)[0].double()
    counts = torch.bincount(torch.tensor([one.ids[0] for one in samples]), minlength=len(WORDS)).double()
    assert counts[expected == 0].sum() == 0
    assert (expected > 0).sum() > 1
    deviation = (counts / n - expected) / (expected * (1 - expected) / n).sqrt().clamp(min=1e-9)
    assert deviation[expected > 0].abs().max() < 4.5


def test_draw_never_takes_what_is_impossible() -> None:
    """At the ends of the unit interval too, where sums in floating point would err."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, -40.0, -torch.inf])
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(3, 5), uniforms).tolist() == [1, 1, 1]
    wide = torch.zeros(1, 128_256)
    assert draw(wide, uniforms[2:]).tolist() == [128_255]
    assert draw(wide, uniforms[:1]).tolist() == [0]
    assert draw(wide, uniforms[1:2]).tolist() == [64_128]


def test_a_response_ends_at_an_end_token(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """It belongs to the ids, and not to the text; the prompt's own does not end anything."""
    pear = WORDS.index("pear")
    teach_to_stop(model, pear)
    assistant = WORDS.index("<|assistant|>")
    greedy = Decoder(temperature=0)
    [[found]] = sample(model, tokenizer, [[END, assistant]], decoder=greedy, max_new_tokens=9, eos_ids=[END, EOS])
    assert (found.text, found.ids) == ("pear", [pear, END])
    assert len(found.log_probabilities) == 2
    [[cut]] = sample(model, tokenizer, [[assistant]], decoder=greedy, max_new_tokens=1, eos_ids=[END])
    assert cut == Sample("pear", [pear], cut.log_probabilities)


def test_messages_and_text_and_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TRAINED_TEMPLATE
    expected = [WORDS.index(word) for word in ["<s>", "<|user|>", "name", "a", "fruit", "<|end|>", "<|assistant|>"]]
    assert prompt_ids(tokenizer, [{"role": "user", "content": "name a fruit"}]) == expected
    assert prompt_ids(tokenizer, "a fruit") == [WORDS.index("a"), WORDS.index("fruit")]
    assert prompt_ids(tokenizer, [3, 4]) == [3, 4]


def test_the_model_is_left_as_it_was(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = model.generation_config
    model.train()
    sample(model, tokenizer, ["name"], max_new_tokens=2)
    assert model.training
    assert model.generation_config is settings
    assert settings.repetition_penalty == 5.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projection": "argmax"}, "softmax, sparsemax or entmax, got 'argmax'"),
        ({"logit_scale": 2.0}, "set the temperature"),
        ({"temperature": -1.0}, "Decoder: temperature must be"),
        ({"temperature": 1e-40}, "too small to calculate with"),  # logits over it are infinite
        ({"top_k": -1}, "Decoder: top_k must be"),
        ({"top_p": 0.0}, "Decoder: top_p must be"),
        ({"projection": "entmax", "alpha": 1.0}, "alpha"),
    ],
)
def test_bad_decoders(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Decoder(**settings)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (["name"], {"n": 0}, "sample: n must be"),
        (["name"], {"max_new_tokens": 0}, "sample: max_new_tokens must be"),
        (["name"], {"seed": -1}, "sample: seed must be"),
        (["name", []], {}, "prompt 1 has no token"),
    ],
)
def test_bad_arguments(
    prompts: Any, settings: dict[str, Any], message: str, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match=message):
        sample(model, tokenizer, prompts, **settings)


def test_no_prompts(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    assert sample(model, tokenizer, []) == []


@pytest.fixture(scope="module")
def short(place: Path) -> GPT2LMHeadModel:
    """Positions in a table of 12."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_positions=12, n_embd=16, n_layer=1, n_head=2, eos_token_id=EOS)
    )


def test_responses_stay_within_the_context(short: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """With the longest prompt they fill it; each draws the tokens that it would draw with more room."""
    prompts = [[3, 4, 5], [3, 4, 5, 6, 7, 8, 9]]
    with pytest.warns(UserWarning, match="^sample: ") as told:
        cut = sample(short, tokenizer, prompts, n=2, max_new_tokens=100, seed=1, eos_ids=[])
    assert [[len(one.ids) for one in answers] for answers in cut] == [[5, 5], [5, 5]]
    assert str(told[0].message) == (
        "sample: 4 of 4 responses were cut off after 5 tokens instead of 100 (max_new_tokens): with the longest prompt "
        "they fill the context of gpt2, 12 tokens"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert sample(short, tokenizer, prompts, n=2, max_new_tokens=5, seed=1, eos_ids=[]) == cut
        ended = sample(short, tokenizer, prompts, max_new_tokens=100, eos_ids=list(range(len(WORDS))))
    assert [len(one.ids) for answers in ended for one in answers] == [1, 1], "nothing was cut off"


def test_a_prompt_as_long_as_the_context(short: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError) as error:
        sample(short, tokenizer, [[3], [3] * 12], max_new_tokens=1)
    assert str(error.value) == (
        "sample: prompt 1 has 12 tokens, which leaves no room for a response in the context of gpt2, 12 tokens; "
        "shorten it"
    )
    assert sample(short, tokenizer, [], max_new_tokens=1) == []


def test_tokens_that_the_model_has_not(short: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError) as error:
        sample(short, tokenizer, [[3], [4, 99]], max_new_tokens=1)
    assert str(error.value) == (
        f"sample: token id 99 of a prompt has no row in the embedding of gpt2, which has {len(WORDS)}; take the "
        "model's own tokenizer"
    )
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.add_special_tokens({"pad_token": "<new>"})
    assert other.pad_token_id >= len(WORDS)
    wanted = sample(short, tokenizer, [[3], [4, 5, 6]], max_new_tokens=4, eos_ids=[])
    assert sample(short, other, [[3], [4, 5, 6]], max_new_tokens=4, eos_ids=[]) == wanted, "padding is masked"
