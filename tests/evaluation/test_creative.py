"""Creative writing on texts that are written here: what is asked, and the diversity of each variant."""

import itertools
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.canned import Canned, canned_model
from ts2_lightning.evaluation import Model, check_spec, describe, files_of, make_measures
from ts2_lightning.evaluation.protocols import creative
from ts2_lightning.evaluation.protocols.creative import Creative
from ts2_lightning.evaluation.protocols.data import Row
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.generation import Response
from ts2_lightning.metrics import functional as f
from ts2_lightning.toyworld import build_tokenizer
from ts2_lightning.types import UserError

SHARED = Path(__file__).resolve().parents[3] / "shared/data/eval"
SENTENCE_MODEL = os.environ.get("TS2_SENTENCE_MODEL", "")
TITLES = ["The Sea", "On Gut", "The Sea"]
TEXTS = {
    "The Sea": ["The sea, the sea!\nIt is blue.", "the sea is not green", "The SEA is blue", ""],
    "On Gut": ["A gut is long, and winds.", "It winds, and it is long.", "a gut", "Gut and gut and gut."],
}


def answers(question: str, index: int) -> str:
    return TEXTS[question.split("'")[1]][index]


@pytest.fixture
def poems(tmp_path: Path) -> str:
    path = tmp_path / "poems.jsonl"
    path.write_text("".join(json.dumps({"title": title}) + "\n" for title in TITLES))
    return str(path)


def asked(poems: str, **settings: Any) -> dict[str, Any]:
    usual = {"data": {"poems": poems}, "sets": ["poems"], "n": 4, "sentence_bert": None}
    return {"creative": {**usual, **settings}}


def measured(model: Any, spec: dict[str, Any]) -> dict[str, float]:
    return make_measures(model, check_spec(spec), lambda line: None, draw=False)


def item(data_set: str = "poems", **fields: Any) -> Any:
    return Creative().item(Row(3, "file:4", fields), data_set)


# What is asked --------------------------------------------------------------------------------------------------


def test_prompts_are_those_of_the_papers() -> None:
    poem = "Write a poem titled 'On Gut' with no more than 200 words."
    assert (
        item(instruction=poem).question == item(title="On Gut").question == item(**{"poem name": "\nOn Gut "}).question
    )
    assert item(title="On Gut").question == poem
    assert item("stories", storytitle="Corn").question == "Write a story titled 'Corn' with no more than 200 words."
    assert item(title="On Gut").id == "3"


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not beside the checkout")
def test_the_papers_files_are_read() -> None:
    files = {"poems": str(SHARED / "gem_poem_titles_half.jsonl"), "stories": str(SHARED / "gem_story_titles.jsonl.gz")}
    protocol = Creative(data=files)
    poems, stories = protocol.items("poems"), protocol.items("stories")
    assert (len(poems), len({poem.question for poem in poems})) == (292, 255)
    assert len(stories) == 500
    assert all(story.question.startswith("Write a story titled '") for story in stories)
    assert len(Creative(data=files, limit=501).items("stories")) == 501


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"name": "x"},
            "no field 'instruction'; wanted are rows with instruction (the whole prompt), or title or poem",
        ),
        ({"title": 3}, "title must be text, got '3'"),
        ({"instruction": " \n"}, "instruction is empty"),
    ],
)
def test_a_bad_row_is_told_in_one_line(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"title": "x"}) + "\n" + json.dumps(fields) + "\n")
    with pytest.raises(UserError) as error:
        Creative(data={"poems": str(file)}).items("poems")
    assert str(error.value).startswith(f"creative.data.poems {file}:2: {said}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ks": [1]}, "ks must be null for all texts under a title, got (1,)"),
        ({"n": 1}, "n must be a whole number of at least 2 or null, got 1; one text does not differ from itself"),
        ({"temperature": 0}, "at temperature 0 all 4 samples are the same"),
        ({"metrics": "code"}, "creative.metrics: expected"),
        ({"sets": ["poem"]}, "no data set 'poem'; did you mean poems?"),
        ({"data": "file.jsonl", "sets": None}, "data must say which file is which: {poems: FILE, ...}"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_spec(asked("poems.jsonl", **settings))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# What follows ---------------------------------------------------------------------------------------------------


def test_values_of_the_text_are_means_over_titles(tmp_path: Path, poems: str) -> None:
    backend = Canned(answers)
    model = canned_model(tmp_path / "out", backend)
    values = measured(model, asked(poems))
    by_title = [TEXTS[title] for title in TITLES]  # the first and the last count twice
    for n in (1, 2, 3):
        expected = statistics.fmean(f.distinct_n(texts, n) for texts in by_title)
        assert values[f"creative/poems/distinct_{n}"] == pytest.approx(expected)
    ngram = statistics.fmean(values[f"creative/poems/distinct_{n}"] for n in (1, 2, 3))
    assert values["creative/poems/ngram"] == pytest.approx(100 * ngram)
    bleu = statistics.fmean(f.self_bleu(texts) for texts in by_title)
    assert values["creative/poems/self_bleu_diversity"] == pytest.approx(100 - bleu)
    assert len(backend.made) == 8  # a title that is there twice is asked once
    assert values["creative/poems/unparsed"] == pytest.approx(2 / 12)  # the empty text, twice
    assert (values["creative/poems/questions"], values["creative/poems/samples"]) == (3, 4)
    lengths = [len(text.split()) for texts in by_title for text in texts]
    assert values["creative/poems/words"] == pytest.approx(statistics.fmean(lengths))
    assert values["creative/poems/within_limit"] == 1
    [file] = files_of(model.out, check_spec(asked(poems))).values()
    per_item = read_result(file).documents["per_item"]["poems/ngram"]
    assert list(per_item) == ["0", "1", "2"]
    assert statistics.fmean(per_item.values()) == pytest.approx(values["creative/poems/ngram"])
    assert describe("creative/poems/ngram").better == "higher"


def test_another_way_to_measure_samples_nothing(tmp_path: Path, poems: str) -> None:
    backend = Canned(answers)
    model = canned_model(tmp_path / "out", backend)
    measured(model, asked(poems))
    values = measured(model, asked(poems, metrics="tofu_code"))
    assert len(backend.made) == 8
    lower = statistics.fmean(f.self_bleu(TEXTS[title], lowercase=True) for title in TITLES)
    assert values["creative/poems/self_bleu_diversity"] == pytest.approx(100 - lower)
    assert not any("distinct" in name or "ngram" in name for name in values)


def test_the_words_of_a_text_are_counted(tmp_path: Path, poems: str) -> None:
    model = canned_model(tmp_path / "out", Canned(lambda question, index: "word " * (200 + index)))
    values = measured(model, asked(poems))
    assert (values["creative/poems/words"], values["creative/poems/within_limit"]) == (201.5, 0.25)


def test_all_texts_may_be_empty_or_strange(tmp_path: Path, poems: str) -> None:
    model = canned_model(tmp_path / "empty", Canned(lambda question, index: "  \n"))
    values = measured(model, asked(poems))
    assert (values["creative/poems/unparsed"], values["creative/poems/ngram"]) == (1, 0)
    assert (values["creative/poems/words"], values["creative/poems/self_bleu_diversity"]) == (0, 100)
    strange = canned_model(tmp_path / "strange", Canned(lambda question, index: "é\u2028\x00😀\u202e" * (index + 1)))
    assert 0 <= measured(strange, asked(poems))["creative/poems/self_bleu_diversity"] <= 100


# Whole chats ----------------------------------------------------------------------------------------------------


@pytest.fixture
def splits_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words as anything splits them, where nltk or its data are not there."""
    try:
        f.nltk_words("A poem.")
    except UserError:
        for module in ("ts2_lightning.metrics.texts", "ts2_lightning.evaluation.protocols.creative"):
            monkeypatch.setattr(f"{module}.nltk_words", lambda text: text.split())


class Local(Canned):
    """Canned responses to prompts in tokens."""

    def complete(self, requests: Any) -> Any:
        """The texts under the first title, whatever was asked."""
        for request in requests:
            self.made.append((str(request.prompt), request.index, 0.0))
            yield Response(request.key, TEXTS["On Gut"][request.index], 3, "stop")


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model with a tokenizer and a template, and without weights."""
    model = Model("model", "model", lambda: "nowhere", tmp_path / "out")
    model.__dict__.update(tokenizer=build_tokenizer(), end_ids=[0])
    backend = Local(answers)
    monkeypatch.setattr(Model, "make_backend", lambda self, batch_size: backend)
    return model


def test_ts2_code_scores_whole_chats(local: Model, tmp_path: Path, splits_words: None) -> None:
    file = tmp_path / "poems.jsonl"
    file.write_text('{"instruction": "name a fruit user\\n\\n"}\n')
    values = measured(local, asked(str(file), metrics="ts2_code"))
    tokenizer: Any = local.tokenizer
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "name a fruit user\n\n"}], tokenize=False, add_generation_prompt=True
    )
    said = tokenizer.decode(tokenizer.encode(rendered, add_special_tokens=False), skip_special_tokens=True)
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": said}, {"role": "assistant", "content": text}], tokenize=False
        )
        for text in TEXTS["On Gut"]
    ]
    assert values["creative/poems/self_bleu_diversity"] == pytest.approx(100 - f.self_bleu(chats, first_only=True))
    pooled = statistics.fmean(f.distinct_n(chats, n, True, creative.nltk_words) for n in (1, 2, 3))
    assert values["creative/poems/ngram"] == pytest.approx(100 * pooled)
    plain = measured(local, asked(str(file)))
    assert plain["creative/poems/ngram"] > values["creative/poems/ngram"] + 5
    from_files = Model("kept", "kept", lambda: "nowhere", tmp_path / "elsewhere", responses=local.out)
    assert measured(from_files, asked(str(file), metrics="ts2_code")) == values


def test_headers_are_taken_away_from_what_was_said(local: Model) -> None:
    class Tokenizer:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return "system\n\nToday.user\n\nname a fruitassistant\n\n"

    real = local.tokenizer
    template = local.chat_template
    local.__dict__.update(tokenizer=Tokenizer(), chat_template=template)
    before, after = creative.chat_around(local, (1, 2))
    assert "system\n\nToday.name a fruit" in before
    assert before + "plum" + after == real.apply_chat_template(  # type: ignore[operator]
        [{"role": "user", "content": "system\n\nToday.name a fruit"}, {"role": "assistant", "content": "plum"}],
        tokenize=False,
    )


def test_whole_chats_cannot_be_had_of_everything(tmp_path: Path, poems: str, splits_words: None) -> None:
    backend = Canned(answers)
    served = canned_model(tmp_path / "out", backend)
    with pytest.raises(UserError, match="an endpoint does not say its template; set metrics to text"):
        measured(served, asked(poems, metrics="ts2_code"))
    assert not backend.made
    measured(served, asked(poems))
    kept = Model("kept", "kept", lambda: "nowhere", tmp_path / "elsewhere", responses=served.out)
    assert measured(kept, asked(poems))
    with pytest.raises(UserError, match="nothing says the chats around these responses"):
        measured(kept, asked(poems, metrics="ts2_code"))


# What scoring needs ---------------------------------------------------------------------------------------------


def test_what_is_missing_is_told_before_anything_is_sampled(
    local: Model, poems: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    f.sentence_embedder.cache_clear()
    for settings, said in (
        (
            {"variant": "papers_code"},
            r"creative: nltk_words needs nltk \(.*ts2-lightning\[nltk\]'; or set metrics to text",
        ),
        ({"sentence_bert": "nowhere"}, r"creative: .*ts2-lightning\[sentence-bert\]'; or set sentence_bert to null"),
    ):
        with pytest.raises(UserError, match=said):
            measured(local, asked(poems, **settings))
    assert not local.make_backend(1).made  # type: ignore[attr-defined]


def test_sent_bert_is_among_the_values(tmp_path: Path, poems: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def embedder(model: str) -> Any:
        assert model == "some/model"
        return lambda texts: torch.tensor([[float(len(text)), 1.0] for text in texts])

    monkeypatch.setattr(creative, "sentence_embedder", embedder)
    model = canned_model(tmp_path / "out", Canned(answers))
    values = measured(model, asked(poems, sentence_bert="some/model"))
    expected = statistics.fmean(f.sent_bert_diversity(TEXTS[title], embedder("some/model")) for title in TITLES)
    assert values["creative/poems/sentence_bert"] == pytest.approx(100 * expected)
    tofu = measured(model, asked(poems, sentence_bert="some/model", metrics="tofu_code"))
    assert "creative/poems/sentence_bert" not in tofu


@pytest.mark.slow
@pytest.mark.skipif(not SENTENCE_MODEL, reason="TS2_SENTENCE_MODEL does not name a sentence-embedding model")
def test_a_real_embedding_model(tmp_path: Path, poems: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = canned_model(tmp_path / "out", Canned(answers))
    values = measured(model, asked(poems, sentence_bert=SENTENCE_MODEL))
    embedder = sentence_transformers.SentenceTransformer(SENTENCE_MODEL, device="cpu")
    of_titles = []
    for title in TITLES:
        vectors = torch.tensor(embedder.encode(TEXTS[title])).double()
        pairs = itertools.combinations(vectors, 2)
        of_titles.append(1 - statistics.fmean(torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs))
    assert values["creative/poems/sentence_bert"] == pytest.approx(100 * statistics.fmean(of_titles), abs=1e-3)
    embed = f.sentence_embedder(SENTENCE_MODEL)
    alike = f.sent_bert_diversity(["The cat sleeps on the sofa.", "A cat is asleep on the couch."], embed)
    apart = f.sent_bert_diversity(["The cat sleeps on the sofa.", "Interest rates rose in May."], embed)
    assert f.sent_bert_diversity(["The same."] * 3, embed) < 1e-6 < alike < 0.4 < 0.6 < apart
