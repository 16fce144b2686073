"""The backend against a loop without batch and cache, and the distributions that it draws from."""

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.callbacks.tiny_llama import END, EOS, TRAINED_TEMPLATE, WORDS, edit, teach_to_stop, write_base
from tests.support.ranks import launch
from ts2_lightning.generation import Decoder, GenerationSettings, Request, sample
from ts2_lightning.generation.backends import TransformersBackend, end_ids, prompt_ids
from ts2_lightning.generation.backends.caches import has_rows
from ts2_lightning.generation.decoders import draw
from ts2_lightning.types import UserError

PROMPTS = [(3, 4, 5), (6,), (3, 4, 5, 6, 7, 8, 9, 3, 4, 5, 6), (6, 7), (8, 8, 8, 8, 8, 8)]
SMALL = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = (11,)


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=16, num_key_value_heads=1))


def gemma3() -> PreTrainedModel:
    """Every other layer sees the last 5 columns."""
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL, intermediate_size=16, head_dim=8, num_key_value_heads=1, sliding_window=5,
            layer_types=["sliding_attention", "full_attention"], max_position_embeddings=256,
        )
    )  # fmt: skip


def mistral() -> PreTrainedModel:
    """No layer sees all columns."""
    return MistralForCausalLM(
        MistralConfig(**SMALL, intermediate_size=16, num_key_value_heads=1, head_dim=8, sliding_window=4)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), n_positions=64, n_embd=16, n_layer=2, n_head=2))


def lfm2() -> PreTrainedModel:
    """Has convolutions, whose states are no rows."""
    return Lfm2ForCausalLM(
        Lfm2Config(**SMALL, intermediate_size=16, num_key_value_heads=1, layer_types=["conv", "full_attention"])
    )


KINDS: dict[str, Callable[[], PreTrainedModel]] = {one.__name__: one for one in (llama, gemma3, mistral, gpt2, lfm2)}


def of_kind(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3  # a random model is all but uniform
    return model


def one_at_a_time(model: PreTrainedModel, request: Request, context: int = 10**9) -> list[int]:
    """The tokens of a response, each from a forward pass over all before it: no batch, no cache."""
    asked = request.settings
    tokens: list[int] = []
    limit = min(asked.max_new_tokens, context - len(request.prompt))
    uniforms = torch.from_numpy(request.uniforms(limit))
    while len(tokens) < limit and not (tokens and tokens[-1] in asked.end_ids):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*request.prompt, *tokens]]), use_cache=False).logits[:, -1]
        shaped = asked.decoder(logits)
        at = len(tokens)
        tokens.append(int(draw(shaped, uniforms[at : at + 1]) if asked.decoder.temperature else shaped.argmax()))
    return tokens


PLAIN = Decoder()


def requests(decoder: Decoder = PLAIN, n: int = 4, most: int = 30, ends: Sequence[int] = ENDS) -> list[Request]:
    asked = GenerationSettings("model", decoder, most, tuple(ends))
    return [Request(prompt, index, asked) for prompt in PROMPTS for index in range(n)]


def tokens_of(responses: Any) -> dict[str, list[int]]:
    return {response.key: list(response.ids) for response in responses}


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


# Against the plain loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_tokens_of_the_plain_loop(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """In batches of which rows end at different steps, are dropped, and replaced by others."""
    model = of_kind(kind)
    assert has_rows(model) == (kind != "lfm2")
    asked = requests()
    wanted = {one.key: one_at_a_time(model, one) for one in asked}
    lengths = {len(tokens) for tokens in wanted.values()}
    assert len(lengths) > 7
    assert max(lengths) > 16
    for batch_size in (1, 5, 64):
        responses = list(TransformersBackend(model, tokenizer, batch_size).complete(asked))
        assert tokens_of(responses) == wanted
        assert all(one.tokens == len(wanted[one.key]) for one in responses)
        assert all((one.finish == "stop") == (wanted[one.key][-1] in ENDS) for one in responses)


@pytest.mark.parametrize(
    "decoder",
    [
        Decoder(temperature=0),
        Decoder("sparsemax"),
        Decoder("entmax", 1.3, 0.5),
        Decoder(temperature=0.7, top_k=4, top_p=0.9),
    ],
    ids=str,
)
def test_every_decoder(decoder: Decoder, tokenizer: PreTrainedTokenizerBase) -> None:
    model = of_kind("llama")
    asked = requests(decoder, n=3)
    wanted = {one.key: one_at_a_time(model, one) for one in asked}
    assert tokens_of(TransformersBackend(model, tokenizer, 4).complete(asked)) == wanted


@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    chosen=strategies.lists(strategies.integers(0, 19), unique=True, min_size=1),
    batch_size=strategies.integers(1, 33),
    kind=strategies.sampled_from(["llama", "gemma3"]),
    lazily=strategies.booleans(),
)
def test_any_part_of_the_requests_in_any_order(
    chosen: list[int], batch_size: int, kind: str, lazily: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    if kind not in _WANTED:
        model = of_kind(kind)
        _WANTED[kind] = model, {one.key: one_at_a_time(model, one) for one in requests()}
    model, wanted = _WANTED[kind]
    asked = [requests()[number] for number in chosen]
    made = tokens_of(TransformersBackend(model, tokenizer, batch_size).complete(iter(asked) if lazily else asked))
    assert made == {one.key: wanted[one.key] for one in asked}


_WANTED: dict[str, tuple[PreTrainedModel, dict[str, list[int]]]] = {}


def test_requests_are_taken_as_they_can_be_worked_on(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whoever claims them for this process leaves the others to others."""
    taken: list[Request] = []

    def claimed() -> Any:
        for one in requests(n=20):
            taken.append(one)
            yield one

    responses = TransformersBackend(of_kind("llama"), tokenizer, 4).complete(claimed())
    next(responses)
    assert len(taken) <= 12
    assert len({response.key for response in responses}) == len(taken) - 1 == 99


def test_no_requests(tokenizer: PreTrainedTokenizerBase) -> None:
    assert list(TransformersBackend(of_kind("llama"), tokenizer).complete([])) == []


def test_a_prompt_is_read_once_for_all_its_samples(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = of_kind("llama")
    widths: list[tuple[int, ...]] = []
    forward = model.forward

    def watched(input_ids: torch.Tensor, **inputs: Any) -> Any:
        widths.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model, "forward", watched)
    list(TransformersBackend(model, tokenizer, 64).complete(requests(n=8, most=2, ends=())))
    assert widths == [(5, 11), (40, 1)]


def test_rows_that_have_ended_are_dropped_and_replaced(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    """So that fewer positions are decoded than if each batch went on until its last row had ended."""
    model = of_kind("llama")
    decoded: list[int] = []
    forward = model.forward

    def watched(input_ids: torch.Tensor, **inputs: Any) -> Any:
        decoded.append(len(input_ids) if input_ids.shape[1] == 1 else 0)
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model, "forward", watched)
    made = tokens_of(TransformersBackend(model, tokenizer, 10).complete(requests(n=20)))
    useful = sum(map(len, made.values()))
    assert useful <= sum(decoded) + len(made) <= 1.5 * useful
    assert max(decoded) == 10


# Memory ------------------------------------------------------------------------------------------------------------


class Scarce:
    """A forward pass that fails where a batch has more rows than there is memory for."""

    def __init__(self, model: PreTrainedModel, rows: int, error: Exception) -> None:
        self.forward, self.rows, self.error, self.failures = model.forward, rows, error, 0

    def __call__(self, input_ids: torch.Tensor, past_key_values: Any, **inputs: Any) -> Any:
        if len(input_ids) > self.rows and past_key_values.get_seq_length() > 12:  # only once the cache has grown
            self.failures += 1
            raise self.error
        return self.forward(input_ids=input_ids, past_key_values=past_key_values, **inputs)


CPU_ERROR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_ERROR)])
def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(
    kind: str, error: Exception, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = of_kind(kind)
    asked = requests()
    wanted = tokens_of(TransformersBackend(model, tokenizer, 16).complete(asked))
    scarce = Scarce(model, 5, error)
    monkeypatch.setattr(model, "forward", scarce)
    backend = TransformersBackend(model, tokenizer, 16)
    with pytest.warns(UserWarning, match="out of memory: batch_size is 8 from here on; nothing is lost"):
        made = list(backend.complete(asked))
    assert backend.batch_size == 16 >> scarce.failures < 16
    assert len(made) == len(asked)
    assert tokens_of(made) == wanted


def test_memory_for_not_even_one(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase) -> None:
    model = of_kind("llama")
    monkeypatch.setattr(model, "forward", Scarce(model, 0, torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(UserError, match="one response at a time"):
        list(TransformersBackend(model, tokenizer, 4).complete(requests()))


def test_other_errors_are_told(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase) -> None:
    model = of_kind("llama")
    monkeypatch.setattr(model, "forward", Scarce(model, 0, RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(TransformersBackend(model, tokenizer, 4).complete(requests()))


# What the responses are ---------------------------------------------------------------------------------------------


def own_log_probabilities(model: PreTrainedModel, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """Of every token of a response, from one plain forward pass of prompt and response."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["gemma3", "lfm2"])
@pytest.mark.parametrize("decoder", [Decoder(), Decoder(temperature=2.0, top_k=5, top_p=0.9), Decoder("sparsemax")])
def test_probabilities_are_those_of_the_model(decoder: Decoder, kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Before temperature, truncation and projection, and with prompts of several lengths in a batch."""
    model = of_kind(kind)
    asked = requests(decoder, n=2, most=12)
    of_key = {one.key: one for one in asked}
    for response in TransformersBackend(model, tokenizer, 4, keep_log_probabilities=True).complete(asked):
        expected = own_log_probabilities(model, of_key[response.key].prompt, response.ids)
        torch.testing.assert_close(torch.tensor(response.log_probabilities), expected, rtol=1e-4, atol=1e-4)
        assert response.mean_probability == pytest.approx(expected.exp().mean().item(), rel=1e-4)


@pytest.mark.parametrize("decoder", [Decoder(), Decoder("sparsemax"), Decoder(temperature=0.7, top_k=4, top_p=0.95)])
def test_tokens_come_as_often_as_the_distribution_says(
    decoder: Decoder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    n = 3000
    asked = GenerationSettings("model", decoder, 1)
    [samples] = sample(TransformersBackend(model, tokenizer, n), ["name a"], asked, n)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids(tokenizer, "name a")])).logits[:, -1]
    expected = decoder(logits).softmax(-1)[0].double()
    counts = torch.bincount(torch.tensor([one.ids[0] for one in samples]), minlength=len(WORDS)).double()
    assert counts[expected == 0].sum() == 0
    assert (expected > 0).sum() > 1
    deviation = (counts / n - expected) / (expected * (1 - expected) / n).sqrt().clamp(min=1e-9)
    assert deviation[expected > 0].abs().max() < 4.5


def test_a_response_ends_at_an_end_token(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """It belongs to the ids, and not to the text; the prompt's own does not end anything."""
    pear = WORDS.index("pear")
    teach_to_stop(model, pear)
    assistant = WORDS.index("<|assistant|>")
    backend = TransformersBackend(model, tokenizer, keep_log_probabilities=True)
    asked = GenerationSettings("model", Decoder(temperature=0), 9, (END, EOS))
    [[response]] = sample(backend, [[END, assistant]], asked)
    assert (response.text, response.ids, response.finish) == ("pear", (pear, END), "stop")
    assert len(response.log_probabilities) == response.tokens == 2
    [[cut]] = sample(backend, [[assistant]], GenerationSettings("model", Decoder(temperature=0), 1, (END,)))
    assert (cut.text, cut.ids, cut.finish) == ("pear", (pear,), "length")


def test_equal_prompts_have_equal_samples(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    asked = GenerationSettings("model", Decoder(), 6)
    backend = TransformersBackend(model, tokenizer)
    first, other, again = sample(backend, ["name", "name a", "name"], asked, n=3)
    assert first == again
    assert len({response.ids for response in [*first, *other]}) == 6
    assert sample(backend, [], asked) == []


def test_messages_and_text_and_ids(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TRAINED_TEMPLATE
    chat = [{"role": "user", "content": "name a fruit"}]
    expected = [WORDS.index(word) for word in ["<s>", "<|user|>", "name", "a", "fruit", "<|end|>", "<|assistant|>"]]
    assert prompt_ids(tokenizer, tuple(chat)) == expected
    assert prompt_ids(tokenizer, "a fruit") == [WORDS.index("a"), WORDS.index("fruit")]
    assert prompt_ids(tokenizer, (3, 4)) == [3, 4]
    [[response], [other]] = sample(
        TransformersBackend(model, tokenizer), [chat, "a fruit"], GenerationSettings("model", Decoder(), 2)
    )
    assert (response.tokens, other.tokens) == (2, 2)


def test_the_model_is_left_as_it_was(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    for one in (model, of_kind("lfm2")):
        own, state = one.generation_config, torch.get_rng_state()
        one.train()
        responses = TransformersBackend(one, tokenizer, 4).complete(requests(most=3))
        next(responses)
        assert torch.is_grad_enabled(), "between two responses too"
        list(responses)
        assert one.training
        assert one.generation_config is own
        assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config.repetition_penalty == 5.0


def test_nothing_of_an_abandoned_batch_is_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    model = of_kind("llama").train()
    responses = TransformersBackend(model, tokenizer, 4).complete(requests())
    next(responses)
    del responses
    gc.collect()
    assert model.training


def test_the_ends_are_the_models_or_the_tokenizers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    assert end_ids(model.generation_config, tokenizer) == [EOS]
    assert end_ids(None, tokenizer) == [tokenizer.eos_token_id]


# The context --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "lfm2"])
def test_each_response_stays_within_the_context_by_itself(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A longer prompt beside it leaves it its own room, and it draws what it would draw with more."""
    model = of_kind(kind)
    model.config.max_position_embeddings = 64
    asked = [Request((3,) * width, 0, requests(most=100, ends=())[0].settings) for width in (3, 60, 63, 40)]
    wanted = {one.key: one_at_a_time(model, one, context=64) for one in asked}
    assert [len(tokens) for tokens in wanted.values()] == [61, 4, 1, 24]
    with pytest.warns(
        UserWarning, match="4 of 4 responses were cut off before max_new_tokens, 100: with their prompts"
    ):
        responses = list(TransformersBackend(model, tokenizer, 3).complete(asked))
    assert tokens_of(responses) == wanted
    assert {response.finish for response in responses} == {"length"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        list(TransformersBackend(model, tokenizer).complete(requests(most=3)))


def refusal(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *prompts: Any) -> str:
    asked = [Request(prompt, 0, GenerationSettings("model", Decoder(), 1)) for prompt in prompts]
    backend = TransformersBackend(model, tokenizer)
    with pytest.raises(UserError) as error:
        backend.check(asked)
    with pytest.raises(UserError) as again:
        list(backend.complete(asked))
    assert str(error.value) == str(again.value)
    return str(error.value)


def test_prompts_that_the_model_does_not_take(tokenizer: PreTrainedTokenizerBase) -> None:
    model = of_kind("gpt2")
    assert refusal(model, tokenizer, (3,), ()) == "a prompt has no token; leave it out"
    said = refusal(model, tokenizer, (3,), (WORDS.index("fruit"),) * 64)
    assert said.startswith("the prompt 'fruit fruit")
    assert said.endswith(
        "... has 64 tokens, which leaves no room for a response in the context of gpt2, 64 tokens; shorten it"
    )
    assert refusal(model, tokenizer, (3,), (4, 99)) == (
        f"token id 99 of a prompt has no row in the embedding of gpt2, which has {len(WORDS)}; take the model's own "
        "tokenizer"
    )


def test_bad_arguments(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="TransformersBackend: batch_size must be"):
        TransformersBackend(model, tokenizer, 0)
    with pytest.raises(UserError, match="sample: n must be"):
        sample(TransformersBackend(model, tokenizer), ["name"], GenerationSettings("model", Decoder(), 1), n=0)


# Ranks --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_take_equally_many_forward_passes() -> None:
    launch("tests.generation.synced_ranks")
