"""NoveltyBench on responses that are written here: classes against the public code's loop, utility, judges."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.canned import Canned, canned_model
from tests.support.errors import refused
from ts2_lightning.evaluation import check_spec, describe, files_of, make_measures
from ts2_lightning.evaluation.judges import Case, Equivalence, EquivalenceSettings, RewardModel, RewardSettings
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.protocols.judged import leave_room
from ts2_lightning.evaluation.protocols.novelty import (
    REWARD_MODEL,
    THRESHOLDS,
    NoveltyBench,
    partition,
    rating,
    utility,
)
from ts2_lightning.evaluation.results import read_result

pytestmark = pytest.mark.usefixtures("judge_cache")
OWN = REWARD_MODEL.rpartition("/")[2]
TEXTS = {
    "Name a colour.": ["Blue", "blue", "red", " BLUE ", "green", "red"],
    "Tell me a story.": [
        "once there was a dog that barked at all cats",
        "a girl went to the sea and found a shell",
        "once there was a dog that barked at most cats",
        "once a dog",
        "the moon is far away and made of old cheese",
        "a girl went to the sea and found a dog",
    ],
}


def answers(question: str, index: int) -> str:
    return TEXTS[question][index]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Prompts in the benchmark's layout."""
    path = tmp_path / "curated.jsonl"
    lines = [{"id": f"curated-{i}", "prompt": prompt, "category": "x"} for i, prompt in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def own(reward_dir: Path, tmp_path: Path) -> str:
    """A tiny reward model under the name of the real one."""
    return str(shutil.copytree(reward_dir, tmp_path / OWN))


def asked(rows: str, **changes: Any) -> dict[str, Any]:
    usual = {"data": {"curated": rows}, "sets": ["curated"], "n": 6, "equivalence": "unigram", "reward": None}
    return {"novelty": {**usual, **changes}}


def measured(model: Any, spec: dict[str, Any]) -> dict[str, float]:
    return make_measures(model, check_spec(spec), lambda line: None, draw=False)


# Classes and utility --------------------------------------------------------------------------------------------


def by_the_loop(texts: Sequence[str], same: Callable[[str, str], bool]) -> list[int]:
    """The loop of the public code, one prompt and one pair at a time."""
    numbers, heads = [-1] * len(texts), 0
    for i, text in enumerate(texts):
        if numbers[i] >= 0:
            continue
        numbers[i] = heads
        for j in range(i + 1, len(texts)):
            if numbers[j] == -1 and same(text, texts[j]):
                numbers[j] = heads
        heads += 1
    return numbers


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=4),
    st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6))),
)
def test_classes_are_those_of_the_public_codes_loop(prompts: list[list[int]], alike: set[tuple[int, int]]) -> None:
    """Also where being the same is neither symmetric nor transitive, as of a classifier; each pair is asked once."""
    texts = [[str(number) for number in of_prompt] for of_prompt in prompts]
    pairs: list[tuple[str, str]] = []

    def same(first: str, second: str) -> bool:
        pairs.append((first, second))
        return (int(first), int(second)) in alike

    expected = [by_the_loop(of_prompt, same) for of_prompt in texts]
    by_loop, pairs = pairs, []
    assert partition(texts, lambda chosen: [same(*pair) for pair in chosen]) == expected
    assert sorted(pairs) == sorted(by_loop)


def test_the_first_member_is_compared() -> None:
    """a = b and b = c, but not a = c: c opens a class, though it is the same as a member of the first."""
    alike = {("a", "b"), ("b", "c")}
    assert partition([["a", "b", "c"]], lambda pairs: [pair in alike for pair in pairs]) == [[0, 0, 1]]
    assert partition([], lambda pairs: []) == []
    assert partition([[], ["a"]], lambda pairs: [True] * len(pairs)) == [[], [0]]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 10), st.booleans()), min_size=1, max_size=10), st.sampled_from([0.5, 0.8, 1.0])
)
def test_utility_is_the_weighted_sum(drawn: list[tuple[int, bool]], patience: float) -> None:
    classes, opened, total, weights = [], 0, 0.0, 0.0
    for place, (rated, is_new) in enumerate(drawn):
        new = is_new or opened == 0
        classes.append(opened if new else 0)
        opened += new
        total += patience**place * rated * new
        weights += patience**place
    assert utility([rated for rated, _ in drawn], classes, patience) == pytest.approx(total / weights)


def test_ratings_are_those_of_the_table() -> None:
    for number, threshold in enumerate(THRESHOLDS):
        assert rating(threshold) == number + 1  # bisect_left: the threshold itself is below
        assert rating(np.nextafter(threshold, 9)) == number + 2
    assert (rating(-math.inf), rating(math.inf)) == (1, 10)


# The protocol ---------------------------------------------------------------------------------------------------


def test_distinct_needs_no_model(tmp_path: Path, rows: str) -> None:
    backend = Canned(answers)
    model = canned_model(tmp_path / "out", backend)
    values = measured(model, asked(rows))
    [file] = files_of(model.out, check_spec(asked(rows))).values()
    documents = read_result(file).documents
    assert documents["classes"] == {"curated": {"curated-0": [0, 0, 1, 0, 2, 1], "curated-1": [0, 1, 0, 0, 2, 1]}}
    assert values["novelty/curated/distinct"] == 3
    assert documents["per_item"]["curated/distinct"] == {"curated-0": 3, "curated-1": 3}
    assert not any("utility" in name or "rating" in name for name in values)
    assert (values["novelty/curated/questions"], values["novelty/curated/samples"]) == (2, 6)
    assert describe("novelty/curated/distinct").better == "higher"


def test_a_model_makes_room_for_judges_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts are made before the first is judged; else the model would be loaded anew for the second."""
    events: list[str] = []
    monkeypatch.setattr(Model, "forget", lambda model: events.append("room"))
    model = canned_model(tmp_path / "out", Canned(answers))
    model.device = "cuda:0"

    def parts() -> Iterator[Any]:
        for part in (1, 2):
            events.append(f"made {part}")
            yield part, []

    for part, _ in leave_room(model, parts()):
        events.append(f"judged {part}")
    assert events == ["made 1", "made 2", "room", "judged 1", "judged 2"]


def test_more_responses_make_other_classes_of_the_same_scores(tmp_path: Path, rows: str, own: str) -> None:
    """What a response is worth depends on those before it, so no such thing may be kept with it."""
    backend = Canned(answers)
    model = canned_model(tmp_path / "out", backend)
    few = measured(model, asked(rows, n=3, reward=own))
    many = measured(model, asked(rows, reward=own))
    assert len(backend.made) == 12
    assert (few["novelty/curated/distinct"], many["novelty/curated/distinct"]) == (2, 3)
    fresh = measured(canned_model(tmp_path / "fresh", Canned(answers)), asked(rows, reward=own))
    assert many == fresh


def test_utility_with_both_judges(tmp_path: Path, rows: str, own: str, similarity_dir: Path) -> None:
    model = canned_model(tmp_path / "out", Canned(answers))
    spec = asked(rows, reward=own, equivalence=str(similarity_dir), patience=0.7)
    values = measured(model, spec)
    judge = RewardModel(RewardSettings(own, device="cpu"))
    pairs = Equivalence(EquivalenceSettings(str(similarity_dir), device="cpu"))
    distinct, useful, rated = [], [], []
    for prompt, texts in TEXTS.items():
        rewards = [verdict.value for verdict in judge.judge([Case.answer(prompt, text) for text in texts])]

        def same(first: str, second: str) -> bool:
            [verdict] = pairs.judge([Case((), first, other=second)])
            return (verdict.value or 0) > 0.102

        classes = by_the_loop(texts, same)
        ratings = [1 + sum(reward > threshold for threshold in THRESHOLDS) for reward in rewards if reward is not None]
        gains = [r if c not in classes[:i] else 0 for i, (r, c) in enumerate(zip(ratings, classes, strict=True))]
        useful.append(np.average(gains, weights=[0.7**i for i in range(6)]))
        distinct.append(max(classes) + 1)
        rated.append(np.mean(ratings))
    assert values["novelty/curated/distinct"] == pytest.approx(np.mean(distinct))
    assert values["novelty/curated/utility"] == pytest.approx(np.mean(useful))
    assert values["novelty/curated/rating"] == pytest.approx(np.mean(rated))
    assert values["novelty/curated/utility"] > 0


def test_the_table_is_of_its_own_reward_model_alone(rows: str, own: str) -> None:
    with refused(
        rf"measure\.novelty: reward\.model: ratings are by a table for rewards of {REWARD_MODEL}, got 'other'; "
    ):
        check_spec(asked(rows, reward="other"))
    with refused("set it to model, or to null"):
        check_spec(asked(rows, reward={"model": own, "format": "papers_code"}))
    assert check_spec(asked(rows, reward=own)).measures
    assert check_spec(asked(rows, reward=f"hub/models--Skywork--{OWN}/snapshots/1a2b")).measures
    usual = NoveltyBench()
    assert usual.reward is not None
    assert usual.reward.model == REWARD_MODEL
    usual.check()


def test_settings_that_no_value_depends_on_are_none_of_the_values(own: str) -> None:
    first = NoveltyBench(reward=RewardSettings(own), equivalence=EquivalenceSettings("unigram"))
    other = NoveltyBench(
        reward=RewardSettings(own, device="cpu", batch_size=2), equivalence=EquivalenceSettings("unigram", batch_size=2)
    )
    assert first.plain_settings() == other.plain_settings()
    assert first.plain_settings() != NoveltyBench(reward=None, equivalence=first.equivalence).plain_settings()
    json.dumps(first.plain_settings())


def test_variants_sample_as_their_papers() -> None:
    paper, tofu = NoveltyBench().sampling, NoveltyBench(variant="tofu").sampling
    assert (paper.n, paper.temperature, paper.top_p, paper.max_new_tokens) == (10, 1.0, 1.0, 512)
    assert (tofu.n, tofu.temperature, tofu.top_p, tofu.max_new_tokens) == (10, 1.0, 0.9, 64)


def test_verdicts_are_counted_before_there_are_responses() -> None:
    words = EquivalenceSettings("unigram")
    assert NoveltyBench().judging(1000) == {"judge calls": 100 * 45 + 1000}
    assert NoveltyBench(reward=None).judging(1000) == {"judge calls": 100 * 45}
    assert NoveltyBench(equivalence=words).judging(1000) == {"judge calls": 1000}
    assert NoveltyBench(equivalence=words, reward=None).judging(1000) == {}


def test_the_benchmarks_file_is_read(shared_data: Path) -> None:
    file = str(shared_data / "eval/noveltybench_curated.jsonl")
    items = NoveltyBench(data={"curated": file}, sets=("curated",)).items("curated")
    assert len({item.id for item in items}) == 100
    assert items[0].id == "curated-0"
    assert items[0].question == "Tell me a story in five sentences about a girl and her dog."


def test_a_judge_that_is_not_there_is_told_before_anything_is_sampled(tmp_path: Path, rows: str) -> None:
    backend = Canned(answers)
    with refused("cannot load this model"):
        measured(canned_model(tmp_path / "out", backend), asked(rows, equivalence=str(tmp_path / "nowhere")))
    assert not backend.made
