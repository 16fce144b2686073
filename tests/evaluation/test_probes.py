"""The probes' numbers against explicit loops, entmax's own sparsemax and what is known of the toy world."""

import json
import math
import re

import entmax
import pytest
import torch
from matplotlib.image import imread
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ts2_lightning.engines import chunked
from ts2_lightning.evaluation import Model, Prompt
from ts2_lightning.evaluation.loading import load_model, supervised_logits
from ts2_lightning.evaluation.probes import PROBES, macro, micro, tail, tspd
from ts2_lightning.evaluation.probes import write_probe as write
from ts2_lightning.evaluation.probes.tokens import TSPD_ORDERS, token_table
from ts2_lightning.generation import Decoder, GenerationSettings, Request, sample
from ts2_lightning.generation.backends import TransformersBackend
from ts2_lightning.runs.writing import write_whole
from ts2_lightning.toyworld import build_tokenizer, load_world, model_config
from ts2_lightning.toyworld.exact import encode_exchange, next_token_log_probabilities
from ts2_lightning.types import UserError

SETTINGS = GenerationSettings("model", Decoder(), 3)
K = 23


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=K, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 25  # some rows nearly certain, some not
    return model


@pytest.fixture(scope="module")
def tokenizer():
    """23 words, among them the digits."""
    words = ["<s>", "</s>", *"0123456789", *(f"w{i}" for i in range(11))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def in_memory(model, tokenizer, decoding="softmax"):
    loaded = Model.in_memory(model, tokenizer, "m")
    loaded.decoding = decoding
    assert loaded.end_ids == [1]
    return loaded


def make_batch(lengths, first_row=0):
    """Rows of random tokens of which all but the first three are supervised."""
    ids = torch.ones(len(lengths), max(lengths), dtype=torch.long)
    supervised, token_rows = [], []
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(first_row + row)
        ids[row, :length] = torch.randint(2, K, (length,), generator=generator)
        supervised += [row * ids.shape[1] + place - 1 for place in range(3, length)]
        token_rows += [row] * (length - 3)
    at = torch.tensor(supervised)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long(),
        "supervised": at,
        "labels": ids.flatten()[at + 1],
        "token_rows": torch.tensor(token_rows),
        "row_index": torch.arange(first_row, first_row + len(lengths)),
    }


@pytest.fixture(scope="module")
def batches():
    return [make_batch([9, 4, 17]), make_batch([6], first_row=3)]


def every_token(model, batches):
    """(row, logits [K], label) of every supervised token, one forward pass per row and without padding."""
    out = []
    for batch in batches:
        for row, ids in enumerate(batch["input_ids"]):
            ids = ids[batch["attention_mask"][row] == 1]
            logits = model(ids[None]).logits[0].detach().double()
            out += [(int(batch["row_index"][row]), logits[p - 1], int(ids[p])) for p in range(3, len(ids))]
    return out


@pytest.mark.parametrize("at_a_time", [1, 3, 10**6])
def test_logits_of_supervised_tokens(model, batches, monkeypatch, at_a_time):
    monkeypatch.setattr(chunked, "default_chunk_size", lambda n, head, device: at_a_time)
    pieces = [(here, logits.clone()) for here, logits in supervised_logits(model, batches[0])]
    assert max(len(logits) for _, logits in pieces) <= at_a_time
    assert [i for here, _ in pieces for i in range(here.start, here.stop)] == list(range(6 + 1 + 14))
    expected = torch.stack([logits for _, logits, _ in every_token(model, batches[:1])])
    torch.testing.assert_close(torch.cat([logits for _, logits in pieces]).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_table_of_tokens(model, batches):
    table = token_table(model, batches)
    for i, (row, z, y) in enumerate(every_token(model, batches)):
        p = z.softmax(-1)
        kept = entmax.sparsemax(z[None])[0] > 0
        expected = {
            "row": row,
            "gold_probability": p[y],
            "entropy": -(p * p.clamp_min(1e-300).log()).sum(),
            "support_size": kept.sum(),
            "tail_mass": p[~kept].sum(),
            "top1": p.sort(descending=True).values[0],
            "top3": p.sort(descending=True).values[2],
            "zero_gradient": kept.sum() == 1 and kept[y],
        }
        for name, value in expected.items():
            assert float(table[name][i]) == pytest.approx(float(value), abs=2e-5), name


def test_tail_is_a_mean_over_rows(model, batches):
    found = tail.measure(token_table(model, batches))
    rows = {}
    for row, z, _ in every_token(model, batches):
        rows.setdefault(row, []).append(float(z.softmax(-1)[entmax.sparsemax(z[None])[0] == 0].sum()))
    means = [sum(values) / len(values) for values in rows.values()]
    mean = sum(means) / 4
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / 3 / 4)
    every = [value for values in rows.values() for value in values]
    assert (found["rows"], found["tokens"]) == (4, len(every))
    assert found["tail_mass"] == pytest.approx(mean, abs=1e-5)
    assert found["tail_mass/standard_error"] == pytest.approx(spread, abs=1e-5)
    assert found["tail_mass/of_tokens"] == pytest.approx(sum(every) / len(every), abs=1e-5)
    assert abs(found["tail_mass"] - found["tail_mass/of_tokens"]) > 1e-3  # rows of unequal length: not the same


def satisfies(p, y, m, eps_head, eps_tail):
    """Definition 1, word for word."""
    top = p.argsort(descending=True).tolist()
    chosen = set(top[:m]) if y in top[:m] else {*top[: m - 1], y}
    return min(p[j] for j in chosen) >= eps_head and sum(p[j] for j in range(K) if j not in chosen) <= eps_tail


def test_tspd_by_its_definition(model, batches):
    found = tspd.measure(token_table(model, batches))
    tokens = [(z.softmax(-1), y) for _, z, y in every_token(model, batches)]
    assert {cell["m"] for cell in found["grid"]} == set(TSPD_ORDERS)
    shares = []
    for cell in found["grid"]:
        m, head, tail_ = cell["m"], cell["eps_head"], cell["eps_tail"]
        if head > 1 / m or tail_ > 1 - m * head + 1e-9:
            assert cell["share"] is None
        else:
            expected = sum(bool(satisfies(p, y, m, head, tail_)) for p, y in tokens) / len(tokens)
            assert cell["share"] == pytest.approx(expected)
            shares.append(expected)
    assert len(set(shares)) > 3  # the model is not the same everywhere
    sizes = [int((entmax.sparsemax(z[None]) > 0).sum()) for _, z, _ in every_token(model, batches)]
    assert found["support_sizes"] == {str(s): sizes.count(s) for s in sorted(set(sizes))}
    assert found["support_size/median"] == sorted(sizes)[(len(sizes) - 1) // 2]
    assert len(found["points"]["entropy"]) == len(tokens)
    assert sorted(found["points"]["gold_probability"]) == pytest.approx(
        sorted(float(p[y]) for p, y in tokens), abs=2e-5
    )


@pytest.mark.parametrize("decoding", ["softmax", "sparsemax", "entmax"])
def test_macro_is_the_mean_probability_of_what_was_sampled(model, tokenizer, decoding):
    projections = {"softmax": torch.softmax, "sparsemax": entmax.sparsemax, "entmax": entmax.entmax15}
    prompts = [Prompt("a", [0, 14, 15]), Prompt("b", [0, 16]), Prompt("c", [0, 20, 21, 22])]
    found = macro.measure(in_memory(model, tokenizer, decoding), prompts, Decoder(decoding), 3, max_new_tokens=6)
    assert found["prompt"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    asked = GenerationSettings("model", Decoder(decoding), 6, (1,))
    answers = sample(TransformersBackend(model, tokenizer), [p.ids for p in prompts], asked, n=3)
    means = []
    for prompt, samples in zip(prompts, answers, strict=True):
        for answer in samples:
            p = [
                projections[decoding](model(torch.tensor([[*prompt.ids, *answer.ids[:t]]])).logits[:, -1].detach(), -1)[
                    0, token
                ]
                for t, token in enumerate(answer.ids)
            ]
            means.append(float(sum(p) / len(p)))
    assert found["mean_probability"] == pytest.approx(means, abs=1e-4)
    assert found["mean"] == pytest.approx(sum(means) / 9, abs=1e-4)
    assert len(set(means)) > 3


def test_macro_draws_different_numbers_for_every_prompt(model, tokenizer):
    """And for every sample of a prompt; they follow from its tokens, so the same prompt has the same ones."""
    prompts = [Prompt("one", [0, 14, 15]), Prompt("other", [0, 15, 14]), Prompt("one again", [0, 14, 15])]
    found = macro.measure(in_memory(model, tokenizer), prompts, Decoder(top_k=50, top_p=0.9), 40, max_new_tokens=5)
    values = found["mean_probability"]
    assert values[:40] != pytest.approx(values[40:80])
    assert values[:40] == values[80:]
    assert len(set(values[:40])) > 20
    assert len({tuple(Request((0, i), j, SETTINGS).uniforms(3)) for i in range(9) for j in range(9)}) == 81


@pytest.mark.parametrize("decoding", ["softmax", "sparsemax"])
def test_micro_records_where_a_digit_came(model, tokenizer, decoding):
    question = Prompt(micro.DIGIT_QUESTION, [0, 14, 15])
    asked = in_memory(model, tokenizer, decoding)
    [found] = micro.measure(asked, [question], first_token=False, queries=6, seed=3)["questions"]
    settings = GenerationSettings("model", Decoder(decoding), 32, (1,), seed=3)
    [answers] = sample(TransformersBackend(model, tokenizer), [question.ids], settings, n=6)
    records = []
    for answer in answers:
        for t, token in enumerate(answer.ids):
            if 2 <= token <= 11:
                z = model(torch.tensor([[*question.ids, *answer.ids[:t]]])).logits[0, -1].detach()
                records.append(z.softmax(-1) if decoding == "softmax" else entmax.sparsemax(z[None])[0])
    mean = torch.stack(records).mean(0)
    assert found["records"] == len(records) > 3
    got = torch.zeros(K)
    got[found["ids"]] = torch.tensor(found["probabilities"])
    torch.testing.assert_close(got, mean, rtol=1e-4, atol=1e-5)
    assert found["probabilities"] == sorted(found["probabilities"], reverse=True)
    assert found["implausible_mass"] == pytest.approx(float(mean[:2].sum() + mean[12:].sum()), abs=1e-5)
    assert {token for token, flag in zip(found["tokens"], found["plausible"], strict=True) if flag} <= set("0123456789")


def test_only_the_most_probable_tokens_count(model, tokenizer, monkeypatch):
    monkeypatch.setattr(micro, "TOP", 4)
    [found] = micro.measure(in_memory(model, tokenizer), [Prompt("x", [0, 14, 15])])["questions"]
    p = model(torch.tensor([[0, 14, 15]])).logits[0, -1].softmax(-1)
    assert found["ids"] == p.topk(4).indices.tolist()
    assert (found["plausible"], found["implausible_mass"]) == (None, None)


def test_no_digit_is_a_finding(model, tokenizer, tmp_path):
    """A model that always ends at once."""
    silent = LlamaForCausalLM(model.config).eval()
    silent.load_state_dict(model.state_dict())
    silent.model.norm.weight.data.zero_()  # all logits equal; only the end is left by the sampler's cut
    question = Prompt(micro.DIGIT_QUESTION, [0, 14])
    silent.lm_head.weight.data.zero_()
    silent.lm_head.bias = torch.nn.Parameter(torch.where(torch.arange(K) == 1, 50.0, 0.0))
    found = {
        name: micro.measure(in_memory(m, tokenizer), [question], first_token=False, queries=4)
        for name, m in (("talks", model), ("silent", silent))
    }
    assert found["silent"]["questions"][0]["records"] == 0
    assert found["talks"]["questions"][0]["records"] > 0
    write("micro", found, {}, tmp_path)
    assert "no digit was sampled" in (tmp_path / "micro.svg").read_text()
    assert "silent no digit sampled" in (tmp_path / "report.md").read_text()
    write("micro", {"silent": found["silent"]}, {}, tmp_path / "alone")
    assert "no digit was sampled" in (tmp_path / "alone" / "micro.svg").read_text()


def test_the_toy_world_knows_what_is_plausible():
    world, tokenizer = load_world(), build_tokenizer()
    torch.manual_seed(1)
    settings = {**model_config().to_dict(), "hidden_size": 16, "intermediate_size": 16, "head_dim": 4}
    model = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    family = next(f for f in world.seen if len(f.taught) == 2)
    exchange = encode_exchange(tokenizer, world, family.held_out[0], next(iter(family.answers)))
    question = Prompt(family.held_out[0], exchange.prompt + exchange.response[: exchange.opening])
    [found] = micro.measure(Model.in_memory(model, tokenizer), [question])["questions"]
    p = next_token_log_probabilities(model, tokenizer, world, family.held_out[0]).exp()
    first_words = {answer.split()[0] for answer in family.answers}
    assert {t for t, flag in zip(found["tokens"], found["plausible"], strict=True) if flag} <= first_words
    plausible = sum(float(p[tokenizer.convert_tokens_to_ids(word)]) for word in first_words)
    assert found["implausible_mass"] == pytest.approx(1 - plausible, abs=1e-5)
    assert found["probabilities"][:9] == pytest.approx(p.sort(descending=True).values[:9].tolist(), abs=1e-6)
    assert sorted(found["taught"].values()) == ["taught 25%", "taught 75%"]


@pytest.fixture(scope="module")
def models(model, tokenizer):
    torch.manual_seed(7)
    other = LlamaForCausalLM(model.config).eval()
    return {"base": in_memory(model, tokenizer), "TS2 $c$": in_memory(other, tokenizer, "sparsemax")}


def numbers_of(probe, model, batches):
    if probe == "micro":
        return micro.measure(model, [Prompt("what is w$3$\nin two lines", [0, 14])])
    if probe == "macro":
        return macro.measure(model, [Prompt("a", [0, 15])] * 9, model.projection, max_new_tokens=4)
    return {"tail": tail, "tspd": tspd}[probe].measure(token_table(model.network, batches))


def text_of(svg):
    """All text of an SVG whose text is text."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text()))


WORDS = {
    "micro": ["in two lines", "first token of the answer", "n = 1 prompt", "probability of the next token"],
    "macro": ["n = 9 responses", "share of the responses (%)", "before temperature and truncation"],
    "tail": ["1st token", "3rd token", "sparsemax support", "n = 4 rows", "softmax probability"],
    "tspd-grid": ["m = 2", "m = 5", "eps_tail", "eps_head", "share of the tokens (%)"],
    "tspd-scatter": ["gold probability p", "entropy H (nats)"],
    "tspd-support": ["tokens that sparsemax keeps", "share of the supervised tokens (%)", "6-10"],
}


@pytest.mark.parametrize("name", PROBES)
def test_numbers_pictures_and_report(name, models, batches, tmp_path):
    found = {title: numbers_of(name, model, batches) for title, model in models.items()}
    written = write(name, found, {"seed": 0}, tmp_path)
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert document["models"] == json.loads(json.dumps(found))
    assert document["settings"] == {"seed": 0}
    stems = [stem for stem in WORDS if stem.split("-")[0] == name]
    assert document["pictures"] == stems
    assert sorted(path.name for path in written) == sorted(
        [f"{s}.{e}" for s in stems for e in ("png", "svg")] + [f"{name}.json"]
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    for stem in stems:
        words = text_of(tmp_path / f"{stem}.svg")
        for word in ["base", "TS2 $c$", "n = ", *WORDS[stem]]:
            assert word in words, (stem, word)
        assert (tmp_path / f"{stem}.png").stat().st_size < 150_000
        picture = imread(tmp_path / f"{stem}.png")
        assert picture.shape[0] > 400
        assert picture.shape[1] > 700
    report = (tmp_path / "report.md").read_text()
    assert report.count(f"- **{name}**: ") == 1
    assert f"[Numbers]({name}.json)" in report


def test_one_figure_for_each_of_the_first_questions(model, tokenizer, tmp_path):
    asked = [Prompt(f"question {i}", [0, 12 + i]) for i in range(6)]
    found = {"m": micro.measure(in_memory(model, tokenizer), asked)}
    write("micro", found, {}, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"micro-{i}.png" for i in range(1, 5)]
    assert len(json.loads((tmp_path / "micro.json").read_text())["models"]["m"]["questions"]) == 6
    found["m"]["questions"] = found["m"]["questions"][:1]
    write("micro", found, {}, tmp_path)  # and no picture is left of those before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["micro.json", "micro.png", "micro.svg", "report.md"]


def test_report_lists_all_probes_of_the_directory(models, batches, tmp_path):
    for name in ("tspd", "tail"):
        write(name, {title: numbers_of(name, model, batches) for title, model in models.items()}, {}, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert re.findall(r"\*\*(\w+)\*\*", report) == ["tail", "tspd"]


def test_a_killed_write_leaves_what_was_there(tmp_path):
    path = write_whole(tmp_path / "a.json", lambda beside: beside.write_text("whole"))

    def killed(beside):
        beside.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, killed)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_equal_numbers_give_equal_pictures(models, batches, tmp_path):
    found = {title: numbers_of("tail", model, batches) for title, model in models.items()}
    for place in ("a", "b"):
        write("tail", found, {}, tmp_path / place)
    for name in ("tail.svg", "tail.png", "tail.json", "report.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tokens_are_shown_as_people_read_them(tokenizer, shared_data):
    assert micro.token_text(tokenizer, 5) == "3"
    assert micro.token_text(tokenizer, 99) == "<99>"
    stories, pieces = load_model(shared_data / "models" / "stories260K")
    assert next(stories.parameters()).dtype == torch.float32
    shown = {pieces.convert_ids_to_tokens(i): micro.token_text(pieces, i) for i in range(len(pieces))}
    assert (shown["▁the"], shown["ed"]) == ("␣the", "ed")
    assert all(text and "\n" not in text for text in shown.values())


def test_no_such_model(tmp_path):
    with pytest.raises(UserError, match="nothing: cannot load this model"):
        load_model(tmp_path / "nothing")
