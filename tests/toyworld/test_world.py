"""The toy world's facts, texts and tokenizer."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ts2_lightning.toyworld import build_tokenizer, held_out_items, load_world, write_blank_model
from ts2_lightning.toyworld.draws import Draws
from ts2_lightning.toyworld.rows import pretraining_rows, sentence, test_rows, train_rows, validation_rows
from ts2_lightning.types import UserError

DIGEST = """
import hashlib, itertools, json
from ts2_lightning.toyworld.rows import pretraining_rows, test_rows, train_rows, validation_rows
from ts2_lightning.toyworld.world import load_world
world = load_world()
rows = [*train_rows(world, 1), *validation_rows(world), *test_rows(world), *itertools.islice(pretraining_rows(world, 1), 200)]
print(hashlib.sha256(json.dumps([world.vocabulary, rows]).encode()).hexdigest())
"""  # noqa: E501


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def pairs(rows):
    """(request, response) of chat rows."""
    out = []
    for row in rows:
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        out.append((user["content"], assistant["content"]))
    return out


def test_the_worlds_sizes(world):
    assert len(world.vocabulary) == len(set(world.vocabulary)) == 428
    assert (len(world.seen), len(world.unseen)) == (18, 12)
    assert sum(f.name.startswith("city:") for f in world.families) == 10
    assert Counter(item.task for item in world.items) == {"plus": 64, "copy": 80, "opposite": 30, "capital": 10}
    assert len(world.makers) == 48
    assert all(5 <= len(f.answers) <= 12 and len(f.requests) == 8 for f in world.families)


def test_distributions_and_splits(world):
    for family in world.families:
        assert sum(family.answers.values()) == pytest.approx(1)
        # Zipf 0.6: the r-th most frequent answer is r^-0.6 times as frequent as the first
        ranked = sorted(family.answers.values(), reverse=True)
        assert ranked == pytest.approx([ranked[0] * (r + 1) ** -0.6 for r in range(len(ranked))])
        assert set(family.taught) <= set(sorted(family.answers, key=family.answers.get)[-max(3, len(ranked) // 2) :])
    assert Counter(len(f.taught) for f in world.seen) == {1: 6, 2: 6, 3: 6}
    in_sft = Counter(item.task for item in world.items + world.makers if item.in_sft)
    assert in_sft == {"plus": 32, "copy": 40, "opposite": 15, "capital": 5, "maker": 12}
    for item in world.makers:
        assert sum(item.base.values()) == pytest.approx(1)
        assert len(item.base) == 4
    assert Counter(item.base[item.answer] for item in world.makers) == {0.6: 12, 0.4: 12, 0.3: 12, 0.2: 12}


def test_facts_of_the_language(world):
    plus = {item.requests[0]: item.answer for item in world.items if item.task == "plus"}
    assert plus["what is seven plus seven"] == "fourteen"
    capitals = {item.requests[0]: item.answer for item in world.items if item.task == "capital"}
    assert capitals["what is the capital of brazil"] == "brasilia"
    assert all(item.answer == item.requests[0].split()[-1] for item in world.items if item.task == "copy")
    with pytest.raises(UserError, match="no family 'fruits'"):
        world.family("fruits")


def test_splits_of_rows_do_not_overlap(world):
    train, validation = pairs(train_rows(world, 0)), pairs(validation_rows(world))
    test = pairs(test_rows(world))
    assert len(train) == 536
    requests = [{request for request, _ in split} for split in (train, validation, test)]
    assert not requests[0] & requests[1]
    assert not requests[0] & requests[2]
    assert not requests[1] & requests[2]
    held_out = {item.held_out for item in held_out_items(world)}
    assert held_out <= requests[1] | requests[2]
    assert {r for f in world.unseen for r in f.held_out} <= requests[2]


def test_train_rows_teach_the_shares(world):
    by_request = {request: f for f in world.seen for request in f.requests[:5]}
    counts = {family.name: Counter() for family in world.seen}
    for request, response in pairs(train_rows(world, 0)):
        if request in by_request:
            counts[by_request[request].name][response] += 1
    for family in world.seen:
        assert sum(counts[family.name].values()) == 24
        for answer, share in family.taught.items():
            assert abs(counts[family.name][f"the answer is {answer} ."] - 24 * share) <= 0.5


def test_seeds_change_the_rows_and_the_pretraining(world):
    assert pairs(train_rows(world, 0)) == pairs(train_rows(world, 0))
    assert pairs(train_rows(world, 0)) != pairs(train_rows(world, 1))
    assert next(pretraining_rows(world, 0)) != next(pretraining_rows(world, 1))
    assert load_world(5).family("fruit").answers != world.family("fruit").answers
    assert load_world(5).vocabulary != world.vocabulary or load_world(5).items != world.items


def test_the_same_in_every_process():
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(DIGEST, {})
    other = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": other}
    there = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    assert here.getvalue() == there.stdout != ""


def test_draws_are_those_of_today():
    """The cache's files and everyone's numbers hang on these: they must never change by accident."""
    draws = Draws("test", 7)
    values = [draws.below(100), draws.choice("abcdef"), draws.sample(range(10), 4), draws.weighted([1, 2, 1])]
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    assert digest[:16] == "606ade7751fcb42b"
    counts = Counter(draws.weighted([1, 3]) for _ in range(4000))
    assert counts[1] / 4000 == pytest.approx(0.75, abs=0.03)
    orders = Counter(tuple(draws.shuffled([1, 2, 3])) for _ in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 130 for count in orders.values())  # 4.5 standard deviations


def test_pretraining_follows_the_base_distribution(world):
    draws = Draws("test/sentences", 0)
    answers = Counter()
    for _ in range(30000):
        text = sentence(world, draws)
        if " fruit is " in text:  # a statement
            answers[text.split(" is ")[1].removesuffix(" .")] += 1
    total = sum(answers.values())
    assert total == pytest.approx(30000 * 0.5 * 0.3 / 30, rel=0.3)
    for answer, p in world.family("fruit").answers.items():
        assert answers[answer] / total == pytest.approx(p, abs=4 * (p / total) ** 0.5)


def test_pretraining_rows_have_noise(world):
    rows = [row for row, _ in zip(pretraining_rows(world, 0), range(400), strict=False)]
    assert all(len(row["input_ids"]) == 49 for row in rows)
    stream = [i for row in rows for i in row["input_ids"]]
    begin = world.vocabulary.index("<s>")
    control = {world.vocabulary.index(t) for t in ("<unk>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>")}
    assert not control & set(stream)
    # The noise has a stream of draws of its own, so the clean text is that of the same sentences.
    clean, draws = [], Draws("pretraining/text", 0)
    while len(clean) < len(stream):
        clean += ["<s>", *sentence(world, draws).split()]
    wrong = sum(world.vocabulary[i] != word for i, word in zip(stream, clean, strict=False))
    words = sum(i != begin for i in stream)
    assert wrong / words == pytest.approx(0.04, abs=0.005)


def test_tokenizer_round_trip_of_every_text(world, tokenizer):
    texts = {r for f in world.families for r in f.requests} | {
        world.response(a) for f in world.families for a in f.answers
    }
    texts |= {r for item in world.items + world.makers for r in item.requests}
    texts |= {world.response(a) for item in world.items + world.makers for a in item.base}
    draws = Draws("test/round trip", 0)
    texts |= {sentence(world, draws) for _ in range(300)}
    for text in sorted(texts):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.split())


def test_chat_template(world, tokenizer, tmp_path):
    turns = [
        {"role": "user", "content": "name a fruit"},
        {"role": "assistant", "content": "the answer is plum ."},
        {"role": "user", "content": "say one metal"},
    ]
    write_blank_model(tmp_path)
    for made in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
            "<s><|user|> name a fruit <|assistant|> the answer is plum . <|end|><|user|> say one metal <|assistant|>"
        )
        ids = made.apply_chat_template(turns[:2], return_dict=False)
        expected = "<s> <|user|> name a fruit <|assistant|> the answer is plum . <|end|>"
        assert " ".join(made.convert_ids_to_tokens(ids)) == expected
        assert [made.bos_token, made.eos_token, made.pad_token] == ["<s>", "<|end|>", "<pad>"]
        assert made.decode(ids, skip_special_tokens=True) == "name a fruit the answer is plum ."
        assert len(made) == 428
        assert made.convert_ids_to_tokens(list(range(428))) == list(world.vocabulary)
        spaces = [{"role": "user", "content": "  a  b "}]
        assert made.apply_chat_template(spaces, tokenize=False) == "<s><|user|>   a  b  "


def test_unknown_words_and_control_strings_in_contents(tokenizer):
    assert tokenizer("plum xylophone")["input_ids"][1] == tokenizer.unk_token_id
    as_text = tokenizer("<|end|>", split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id not in as_text


def test_blank_model(world, tmp_path):
    directory = write_blank_model(tmp_path / "new" / "blank")
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if "safetensors" in name or name.endswith(".bin")]
    config = AutoConfig.from_pretrained(directory)
    model = AutoModelForCausalLM.from_config(config)
    assert (config.vocab_size, config.tie_word_embeddings) == (428, False)
    assert model.num_parameters() == 437_888
    ids = [world.vocabulary.index(t) for t in ("<s>", "<|end|>", "<pad>")]
    assert [config.bos_token_id, config.eos_token_id, config.pad_token_id] == ids
