"""Distinct n-grams, self-BLEU and embedding distances against loops, sacrebleu's own interface and cases by hand."""

import itertools
import random
import sys
import types
from typing import Any

import pytest
import sacrebleu
import torch
from sacrebleu.metrics import BLEU
from torch import Tensor

from ts2_lightning.metrics import diversity_metrics
from ts2_lightning.metrics import functional as f
from ts2_lightning.types import UserError

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "hat", ",", ".", "red", "green", "never", "so"]


def samples(n: int, length: int, seed: int = 0, vocabulary: int = 16) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS[:vocabulary], k=draw.randint(1, length))) for _ in range(n)]


SETS = [
    samples(n, length, seed, v) for seed, (n, length, v) in enumerate(itertools.product((2, 3, 7), (6, 40), (3, 16)))
]


# -- distinct n-grams


def test_words() -> None:
    assert f.words("Hello,  world!\n(3.5%)") == ["Hello", ",", "world", "!", "(", "3.5", "%", ")"]
    assert f.words(" \n") == []


def test_distinct_by_hand() -> None:
    texts = ["a b a b", "a b c"]
    assert f.distinct_n(texts, 1) == pytest.approx((2 / 4 + 3 / 3) / 2)
    assert f.distinct_n(texts, 2) == pytest.approx((2 / 3 + 2 / 2) / 2)  # ab ba ab; ab bc
    assert f.distinct_n(texts, 1, pooled=True) == pytest.approx(3 / 7)
    assert f.distinct_n(texts, 2, pooled=True) == pytest.approx(3 / 5)
    assert f.distinct_n(["a a a"], 1, pooled=True) == f.distinct_n(["a a a"], 1) == pytest.approx(1 / 3)


def test_copies_of_a_text() -> None:
    """Within the text nothing is repeated; the pool of k copies has one k-th distinct."""
    copies = ["one two three four"] * 5
    for n in (1, 2, 3):
        assert f.distinct_n(copies, n) == 1
        assert f.distinct_n(copies, n, pooled=True) == pytest.approx(1 / 5)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_distinct_by_loops(n: int) -> None:
    for texts in SETS:
        pool, shares = [], []
        for text in texts:
            found = list(zip(*[text.split()[i:] for i in range(n)], strict=False))
            pool += found
            shares.append(len(dict.fromkeys(found)) / len(found) if found else 0.0)
        assert f.distinct_n(texts, n) == pytest.approx(sum(shares) / len(shares))
        assert f.distinct_n(texts, n, pooled=True) == pytest.approx(len(dict.fromkeys(pool)) / len(pool) if pool else 0)


def test_texts_without_an_n_gram_count_as_zero() -> None:
    assert f.distinct_n(["plum", ""], 1) == 0.5
    assert f.distinct_n(["plum", ""], 2) == f.distinct_n(["plum", ""], 2, pooled=True) == 0
    assert f.distinct_n(["", "a b"], 1, pooled=True) == 1


def test_own_tokenizer() -> None:
    assert f.distinct_n(["abab"], 1, tokenize=list) == 0.5


# -- self-BLEU


def against_the_others(texts: list[str]) -> list[float]:
    """Through sacrebleu's own interface: one stream of references for each of the others."""
    bleu = BLEU(effective_order=True)
    return [bleu.corpus_score([text], [[o] for o in texts[:i] + texts[i + 1 :]]).score for i, text in enumerate(texts)]


def test_self_bleu_is_that_of_sacrebleu() -> None:
    for texts in SETS:
        scores = against_the_others(texts)
        assert f.self_bleu(texts) == pytest.approx(sum(scores) / len(scores), rel=1e-12)
    assert len({round(f.self_bleu(texts), 3) for texts in SETS}) > len(SETS) // 2  # the cases are not all alike


def test_signs_newlines_and_entities() -> None:
    texts = ["Well, it's\n a cat.", "Well , it's a cat .  ", "&quot;Well&quot;, it's a co-\noperative cat", ""]
    scores = against_the_others(texts)
    assert f.self_bleu(texts) == pytest.approx(sum(scores) / 4, rel=1e-12)


def test_long_texts_do_not_need_the_effective_order() -> None:
    """From four words on it is sacrebleu's plain `corpus_bleu`."""
    texts = [text for text in samples(9, 30, seed=5) if len(text.split()) >= 4]
    scores = [sacrebleu.corpus_bleu([t], [[o] for o in texts[:i] + texts[i + 1 :]]).score for i, t in enumerate(texts)]
    assert f.self_bleu(texts) == pytest.approx(sum(scores) / len(scores), rel=1e-12)


def test_equal_and_disjoint_texts() -> None:
    assert f.self_bleu(["one two three four five"] * 3) == pytest.approx(100)
    assert f.self_bleu(["plum", "plum"]) == pytest.approx(100)  # short answers that repeat are not diverse
    assert f.self_bleu(["a b c d", "e f g h"]) == 0
    assert f.self_bleu(["", ""]) == 0


def test_against_the_first_is_what_the_published_code_computes() -> None:
    """`corpus_bleu([text], [others])` silently drops all references but the first."""
    texts = [text for text in samples(8, 30, seed=2) if len(text.split()) >= 4]
    published = [sacrebleu.corpus_bleu([t], [texts[:i] + texts[i + 1 :]]).score for i, t in enumerate(texts)]
    assert f.self_bleu(texts, first_only=True) == pytest.approx(sum(published) / len(published), rel=1e-12)
    assert f.self_bleu(texts, first_only=True) < f.self_bleu(texts) - 1
    twins = ["quite another one here", "the cat sat on the mat", "the cat sat on the mat"]
    assert f.self_bleu(twins, first_only=True) < 1
    assert f.self_bleu(twins) == pytest.approx(200 / 3)


def test_in_lower_case_it_is_what_tofus_code_computes() -> None:
    bleu = BLEU(tokenize="13a", lowercase=True, effective_order=True)
    shouted = [text.upper() if i % 2 else text for i, text in enumerate(samples(6, 30, seed=3))]
    for texts in (shouted, ["A co-\noperative CAT", "a co- operative cat", "a cooperative cat", "", "Ünder Ärzten"]):
        spaced = [text.replace("\n", " ") for text in texts]
        scores = [bleu.sentence_score(text, spaced[:i] + spaced[i + 1 :]).score for i, text in enumerate(spaced)]
        assert f.self_bleu(texts, lowercase=True) == pytest.approx(sum(scores) / len(scores), rel=1e-12)
        assert f.self_bleu(texts, lowercase=True) > f.self_bleu(texts) + 1


# -- words of nltk


def test_words_of_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    def word_tokenize(text: str) -> list[str]:
        if not text:
            raise LookupError("\n****\n  Resource punkt_tab not found.\n  and thirty more lines")
        return list(text)

    monkeypatch.setitem(sys.modules, "nltk", types.ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.tokenize", types.SimpleNamespace(word_tokenize=word_tokenize))
    assert f.nltk_words("it's") == ["i", "t", "'", "s"]
    with pytest.raises(UserError, match=r"^nltk_words needs nltk's data punkt_tab: python -m nltk.downloader punkt_t"):
        f.nltk_words("")
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(UserError, match=r"^nltk_words needs nltk \(.*\): pip install 'ts2-lightning\[nltk\]'$"):
        f.nltk_words("it's")


# -- what belongs together


def published(sets: list[list[str]], split: Any) -> tuple[float, float]:
    """n-gram diversity and self-BLEU as `evaluation/evaluation_diversity.py` of TS2 and GEM computes them."""
    ratios, scores = [], []
    for texts in sets:
        for n in (1, 2, 3):
            pool = [tuple(split(text)[i : i + n]) for text in texts for i in range(len(split(text)) - n + 1)]
            ratios.append(len(set(pool)) / len(pool) if pool else 0)
        each = [sacrebleu.corpus_bleu([t], [texts[:i] + texts[i + 1 :]]).score for i, t in enumerate(texts)]
        scores.append(sum(each) / len(each))
    return sum(ratios) / len(ratios), sum(scores) / len(scores)


def test_ts2_code_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        split: Any = f.nltk_words
        split("It's here.")
    except UserError:  # without nltk and its data any other way to split words does
        split = str.split
        monkeypatch.setattr("ts2_lightning.metrics.texts.nltk_words", split)
    chats = [[f"<user> name a pet <assistant> {text}" for text in texts] for texts in SETS if len(texts) == 7]
    metrics = diversity_metrics("ts2_code", embed=lambda texts: torch.eye(len(texts)))
    distinct = [metrics[f"distinct_{n}"](chats).item() for n in (1, 2, 3)]
    ngram, bleu = published(chats, split)
    assert sum(distinct) / 3 == pytest.approx(ngram, rel=1e-12)
    assert metrics["self_bleu"](chats).item() == pytest.approx(bleu, rel=1e-12)
    assert metrics["sentence_bert"](chats).item() == pytest.approx(1)


def test_variants_are_not_mixed() -> None:
    texts = [["The cat sat.", "the dog sat on a mat.", "the cat sat on a mat"]]
    of_text = diversity_metrics()
    assert list(of_text) == ["distinct_1", "distinct_2", "distinct_3", "self_bleu"]
    assert of_text["distinct_2"](texts).item() == f.distinct_n(texts[0], 2)
    assert of_text["self_bleu"](texts).item() == f.self_bleu(texts[0])
    of_tofu = diversity_metrics("tofu_code", embed=lambda texts: torch.eye(len(texts)))
    assert {name: metric(texts).item() for name, metric in of_tofu.items()} == {
        "self_bleu": f.self_bleu(texts[0], lowercase=True)
    }
    with pytest.raises(UserError, match="variant must be text, ts2_code or tofu_code, got 'code'"):
        diversity_metrics("code")  # type: ignore[arg-type]


# -- embeddings


def test_mean_over_all_pairs() -> None:
    embeddings = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosines = [
        torch.nn.functional.cosine_similarity(embeddings[i], embeddings[j], dim=0).item()
        for i, j in itertools.combinations(range(7), 2)
    ]
    assert f.mean_pairwise_distance(embeddings) == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-12)
    assert f.mean_pairwise_distance(3 * embeddings.float()) == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-5)


def test_embeddings_by_hand() -> None:
    def embed(texts: list[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0] if text == "x" else [0.0, 2.0] for text in texts], requires_grad=True)

    assert f.sent_bert_diversity(["x", "x"], embed) == 0
    assert f.sent_bert_diversity(["x", "y"], embed) == 1
    assert f.sent_bert_diversity(("x", "y", "y"), embed) == pytest.approx(2 / 3)
    assert f.mean_pairwise_distance(torch.tensor([[1.0], [-1.0]])) == 2
    assert f.mean_pairwise_distance(torch.zeros(2, 3)) == 1


def test_embedder_is_loaded_once_and_without_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, dict[str, Any]]] = []

    class SentenceTransformer:
        def __init__(self, name: str, **settings: Any) -> None:
            if name == "nowhere":
                raise OSError("nowhere is not a model\nand here are forty more lines")
            loaded.append((name, settings))

        def encode(self, texts: list[str], convert_to_tensor: bool, show_progress_bar: bool) -> Tensor:
            assert convert_to_tensor
            return torch.tensor([[float(len(text)), 1.0] for text in texts])

    monkeypatch.setitem(
        sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=SentenceTransformer)
    )
    f.sentence_embedder.cache_clear()
    embed = f.sentence_embedder("some/model")
    assert f.sentence_embedder("some/model") is embed
    assert f.sent_bert_diversity(["ab", "cd"], embed) == pytest.approx(0, abs=1e-12)
    ((name, settings),) = loaded
    assert name == "some/model"
    assert settings["model_kwargs"] == {"use_safetensors": True}
    assert not settings.get("trust_remote_code")
    with pytest.raises(UserError, match=r"^sentence_embedder\('nowhere'\): cannot load .*: nowhere is not a model$"):
        f.sentence_embedder("nowhere")
    f.sentence_embedder.cache_clear()


def test_embedder_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    f.sentence_embedder.cache_clear()
    with pytest.raises(UserError, match=r"needs sentence-transformers \(.*\): pip install .*sentence-bert"):
        f.sentence_embedder()


# -- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: f.distinct_n([], 1), r"distinct_n\(texts\) needs 1 or more samples of a prompt, got 0"),
        (lambda: f.distinct_n(["a"], 0), r"distinct_n: n must be a whole number of at least 1, got 0"),
        (lambda: f.distinct_n("abc", 1), r"distinct_n\(texts\) must be a list of strings.* got str"),
        (lambda: f.self_bleu(["a"]), r"self_bleu\(texts\) needs 2 or more samples of a prompt, got 1"),
        (lambda: f.self_bleu([["a"], ["b"]]), r"self_bleu\(texts\) must be a list of strings"),
        (lambda: f.sent_bert_diversity(["a"], lambda texts: torch.ones(1, 2)), r"needs 2 or more samples .* got 1"),
        (lambda: f.sent_bert_diversity(["a", "b"], lambda texts: torch.ones(3)), r"embed: expected .*\[2, d\].* \[3\]"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
