"""The exact measures against explicit loops and against sampling with transformers' `generate`."""

import math

import entmax
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ts2_lightning.evaluation.distributions import DECODINGS, PAPERS, PLAIN
from ts2_lightning.generation import Decoder, SparsemaxLogitsProcessor
from ts2_lightning.toyworld import build_tokenizer, load_world, model_config
from ts2_lightning.toyworld import measure as means
from ts2_lightning.toyworld.exact import (
    encode_exchange,
    end_probability,
    expected_distinct,
    matched_temperature,
    next_token_log_probabilities,
    plausible_first_tokens,
    response_measures,
    score,
    shape_measures,
)
from ts2_lightning.toyworld.measure import evaluate_toyworld
from ts2_lightning.types import UserError

SETTINGS = {
    PLAIN: {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    PAPERS: {"do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 0.9},
}
PROJECTIONS = {
    "softmax": lambda z: z.softmax(-1),
    "sparsemax": lambda z: entmax.sparsemax(z, dim=-1),
    "entmax": lambda z: entmax.entmax15(z, dim=-1),
}


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(world, tokenizer):
    """A tiny Llama, trained for a moment on two families and some sums: it is right often, not always."""
    torch.manual_seed(0)
    settings = {**model_config().to_dict(), "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    rows = [(f.requests[5], a) for f in world.seen[1:3] for a in f.answers] * 2
    rows += [(world.seen[1].requests[5], answer) for answer in list(world.seen[2].answers)[:4]] * 2  # its mistakes
    rows += [(item.held_out, item.answer) for item in world.items[:12]]
    exchanges = [encode_exchange(tokenizer, world, request, answer) for request, answer in rows]
    width = max(len(e.prompt + e.response) for e in exchanges)
    ids = torch.tensor([e.prompt + e.response + [0] * (width - len(e.prompt + e.response)) for e in exchanges])
    labels = ids.masked_fill(ids == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def scored(model, tokenizer, world):
    """All plausible responses of one trained, multi-word family, and of one that is new to the model."""
    families = [world.seen[1], world.unseen[0]]
    exchanges = [encode_exchange(tokenizer, world, f.requests[5], a) for f in families for a in f.answers]
    return score(model, exchanges, [i for i, f in enumerate(families) for _ in f.answers], batch_size=7)


@torch.no_grad()
def response_probability(model, prompt, response, decoder, projection):
    """Token by token, each from its own forward, entmax's projection in float64 and transformers' own warpers."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(decoder.temperature)])
    if decoder.top_k:
        warpers += [TopKLogitsWarper(decoder.top_k), TopPLogitsWarper(decoder.top_p)]
    prefix, probabilities = list(prompt), []
    for token in response:
        ids = torch.tensor([prefix])
        p = PROJECTIONS[projection](model(ids).logits[:, -1].double())
        probabilities.append(warpers(ids, p.log()).softmax(-1)[0, token].item())
        prefix.append(token)
    return probabilities


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("decoder", [PLAIN, PAPERS, Decoder(temperature=1.7)])
def test_measures_against_an_explicit_loop(model, tokenizer, world, scored, decoder, projection):
    family = world.seen[1]
    assert any(" " in answer for answer in family.answers)
    prompt = tokenizer("<s><|user|> " + family.requests[5] + " <|assistant|>")["input_ids"]
    whole, answers, ended, unended = [], [], [], []
    for answer in family.answers:
        response = tokenizer(f"the answer is {answer} . <|end|>")["input_ids"]
        p = response_probability(model, prompt, response, decoder, projection)
        whole.append(math.prod(p))
        answers.append(math.prod(p[3:-2]))
        ended.append(p[-1])
        unended.append(math.prod(p[:-1]))
    projected = scored.projected(DECODINGS[projection])
    result = {name: values[0].item() for name, values in response_measures(projected, decoder).items()}
    distinct = sum(1 - (1 - p) ** 32 for p in whole)
    assert 0.05 < result["validity"] < 0.999  # or the test would say little
    assert result["validity"] == pytest.approx(sum(whole), rel=1e-4)
    assert result["distinct"] == pytest.approx(distinct, rel=1e-4)
    assert result["coverage"] == pytest.approx(distinct / len(family.answers), rel=1e-4)
    assert result["format"] == pytest.approx(sum(whole) / sum(answers), rel=1e-4)
    if decoder is PLAIN:
        weighted = sum(e * u for e, u in zip(ended, unended, strict=True)) / sum(unended)
        assert end_probability(projected)[0].item() == pytest.approx(weighted, rel=1e-4)


@pytest.mark.parametrize(
    ("projection", "processors", "decoder"),
    [("softmax", [], PLAIN), ("softmax", [], PAPERS), ("sparsemax", [SparsemaxLogitsProcessor()], PLAIN)],
)
def test_measures_against_sampling(model, tokenizer, world, scored, projection, processors, decoder):
    family, groups = world.seen[1], 50
    prompt = torch.tensor([tokenizer("<s><|user|> " + family.requests[5] + " <|assistant|>")["input_ids"]])
    torch.manual_seed(3)
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=9,
        num_return_sequences=32 * groups,
        logits_processor=LogitsProcessorList(processors),
        **SETTINGS[decoder],
    )
    plausible = {f"the answer is {answer} . <|end|>" for answer in family.answers}
    texts = [tokenizer.decode(ids).split(" <pad>")[0] for ids in out[:, prompt.shape[1] :]]
    valid = [text if text in plausible else None for text in texts]
    projected = scored.projected(DECODINGS[projection])
    result = {name: values[0].item() for name, values in response_measures(projected, decoder).items()}
    share = sum(text is not None for text in valid) / len(valid)
    sigma = (result["validity"] * (1 - result["validity"]) / len(valid)) ** 0.5
    assert share == pytest.approx(result["validity"], abs=4 * sigma + 1e-4)
    distinct = torch.tensor([float(len(set(valid[i::groups]) - {None})) for i in range(groups)])
    error = (distinct.std() / groups**0.5).item()
    assert distinct.mean().item() == pytest.approx(result["distinct"], abs=4 * error)
    assert error < 0.3


def test_expected_distinct():
    p = torch.tensor([0.0, 1e-12, 0.2, 1.0], dtype=torch.float64)
    expected = [0.0, 32e-12, 1 - 0.8**32, 1.0]
    assert expected_distinct(p).tolist() == pytest.approx(expected, rel=1e-9)


def test_greedy_accuracy_is_that_of_generate(model, tokenizer, world):
    items = world.items[:8] + world.items[40:44]
    right, _ = means._item_scores(model, tokenizer, world, items, "chat", PLAIN)
    for item, ours in zip(items, right.tolist(), strict=True):
        prompt = torch.tensor([tokenizer("<s><|user|> " + item.held_out + " <|assistant|>")["input_ids"]])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
        text = tokenizer.decode(out[0, prompt.shape[1] :])
        assert ours == (text == f"the answer is {item.answer} . <|end|>")
    assert 0 < right.sum() < len(items)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_shape_of_the_first_answer_token(model, tokenizer, world, projection):
    family = world.seen[1]
    ids = tokenizer("<s><|user|> " + family.requests[5] + " <|assistant|> the answer is")["input_ids"]
    with torch.no_grad():
        z = model(torch.tensor([ids])).logits[0, -1]
    log_p = next_token_log_probabilities(model, tokenizer, world, family.requests[5])
    torch.testing.assert_close(log_p, z.log_softmax(-1))
    mask = plausible_first_tokens(tokenizer, family, 428)
    first = {answer.split()[0] for answer in family.answers}
    assert {world.vocabulary[i] for i in mask.nonzero()[:, 0]} == first
    p = PROJECTIONS[projection](z.double())
    support = entmax.sparsemax(z, dim=-1) > 0
    kept = support if projection == "softmax" else p > 0
    shape = shape_measures(z[None], mask[None], DECODINGS[projection])
    got = {name: values.item() for name, values in shape.items()}
    assert got == pytest.approx(
        {
            "outside_plausible": sum(p[i].item() for i in range(428) if world.vocabulary[i] not in first),
            "tail_mass": p[~support].sum().item(),
            "support_size": kept.sum().item(),
            "entropy": -sum(q * math.log(q) for q in p.tolist() if q),
        },
        rel=1e-6,
        abs=1e-12,
    )


def test_matched_temperature(scored):
    found = matched_temperature(scored, 0.3)
    at = [
        response_measures(scored, Decoder(temperature=found * f))["validity"].mean().item()
        for f in (1.0, 1.002, 1.2, 2.0)
    ]
    assert at[0] >= 0.3 > max(at[1:])
    assert at[0] == pytest.approx(0.3, abs=2e-3)
    assert math.isnan(matched_temperature(scored, 0.999))


def test_of_a_sparse_projection_any_temperature_keeps_what_is_impossible_out(scored):
    """p^(1 / T) spreads over the support and no further, so that V need not fall as T rises."""
    sparse = scored.projected(DECODINGS["sparsemax"])
    at = [response_measures(sparse, Decoder(temperature=t))["validity"][0].item() for t in (1.0, 5.0)]
    loose = response_measures(scored, Decoder(temperature=5.0))["validity"][0].item()
    assert at[1] > 3 * loose
    assert matched_temperature(sparse, 0.3) > matched_temperature(scored, 0.3)


def test_text_style_is_the_plain_sentence(tokenizer, world):
    exchange = encode_exchange(tokenizer, world, "name a fruit", "dragon fruit", "text")
    assert tokenizer.decode(exchange.prompt) == "<s> name a fruit , the answer is"
    assert tokenizer.decode(exchange.response) == "dragon fruit ."
    assert (exchange.opening, exchange.answer) == (0, 2)


def test_unusable_tokenizers(tokenizer, world):
    with pytest.raises(UserError, match="does not know all words"):
        encode_exchange(tokenizer, world, "name a fruit", "durian")
    other = build_tokenizer()
    other.chat_template = "{% for message in messages %}{{ message['content'] }} yes {% endfor %}"
    with pytest.raises(UserError, match="chat template does not render"):
        encode_exchange(other, world, "name a fruit", "plum")


@pytest.mark.parametrize(
    ("style", "projection"), [("chat", "softmax"), ("text", "softmax"), ("chat", "sparsemax"), ("text", "entmax")]
)
def test_evaluate_all(model, tokenizer, world, style, projection):
    model.train()
    result = evaluate_toyworld(model, tokenizer, world, style, projection)
    assert model.training
    model.eval()
    assert all(isinstance(value, float) for value in result.values())
    for split in ("seen", "unseen"):
        for name in ("validity_t1", "validity_papers", "coverage_t1", "tail_mass", "outside_plausible"):
            assert 0 <= result[f"{split}/{name}"] <= 1
        assert not result[f"{split}/format_t1"] > 1  # nan where no plausible answer is possible
    assert ("seen/end_probability" in result) == (style == "chat")
    by_k = [result[f"seen/distinct_t1_k{k}"] for k in (1, 2, 3)]
    assert sum(by_k) / 3 == pytest.approx(result["seen/distinct_t1"], abs=1e-9)  # six families of each
    assert "unseen/distinct_t1_k1" not in result
    assert result["seen/distinct_base"] == pytest.approx(7.7, abs=0.3)
    tasks = [result[f"accuracy/{task}"] for task in ("plus", "capital", "opposite", "copy")]
    assert result["accuracy"] == pytest.approx(sum(tasks) / 4)
    assert result["maker/pass_32_t1"] >= result["maker/pass_1_t1"]
    if projection == "softmax":
        assert result == pytest.approx(evaluate_toyworld(model, tokenizer, world, style), rel=0, abs=0, nan_ok=True)
        assert result["seen/format_t1"] >= 0
    else:  # greedy decoding is the same; what is sampled differs
        plain = evaluate_toyworld(model, tokenizer, world, style)
        assert result["accuracy"] == plain["accuracy"]
        assert result["seen/entropy"] < plain["seen/entropy"]
    if projection == "sparsemax":
        assert result["seen/tail_mass"] == 0


def test_a_mean_is_not_over_the_prompts_that_a_model_gets_right(model, tokenizer, world):
    """Under sparsemax some prompts have no plausible answer at all: what is behind the answer is not defined there."""
    dense, sparse = (evaluate_toyworld(model, tokenizer, world, projection=p) for p in ("softmax", "sparsemax"))
    scored, _ = means._score_families(model, tokenizer, world, world.seen, "chat")
    ends = end_probability(scored.projected(DECODINGS["sparsemax"]))
    assert 0 < ends.isnan().sum() < len(ends)
    for name in ("seen/format_t1", "seen/end_probability"):
        assert math.isnan(sparse[name])
        assert 0 < dense[name] <= 1
