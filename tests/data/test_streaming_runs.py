"""Streamed trainings of a model in processes of their own: two ranks, a killed one, one with a bad row."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from streaming_runs import BATCH, RUNS, STEPS
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.ranks import launch
from ts2_lightning.toyworld import load_world, write_blank_model

ROWS = 3 * BATCH + 4
Seen = Callable[[str], list[dict[str, Any]]]
Step = tuple[Counter[str], set[int], float]

pytestmark = pytest.mark.slow


def conversation(number: int) -> dict[str, Any]:
    """Of one to three turns, no two alike."""
    words = load_world().words
    turns = []
    for turn in range(1 + number % 3):
        turns.append({"role": "user", "content": words[number]})
        turns.append({"role": "assistant", "content": " ".join(words[number + turn : number + turn + 1 + number % 5])})
    return {"messages": turns}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    directory = tmp_path_factory.mktemp("runs")
    rows = [json.dumps(conversation(number)) + "\n" for number in range(ROWS)]
    (directory / "rows.jsonl").write_text("".join(rows))
    (directory / "bad.jsonl").write_text("".join([*rows[:10], "{\n", *rows[10:]]))
    write_blank_model(directory / "model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory / "model")).save_pretrained(
        directory / "model"
    )
    launch("tests.data.streaming_runs", directory, timeout=600)

    def load(name: str) -> list[dict[str, Any]]:
        return [torch.load(directory / f"{name}-{rank}.pt") for rank in range(RUNS[name].get("ranks", 1))]

    return load


def steps_of(ranks: list[dict[str, Any]]) -> dict[int, Step]:
    """Of each step the rows over all ranks, the divisors, and the sum of the losses."""
    steps: dict[int, Step] = {}
    for rank in ranks:
        for step, rows, divisor, objective in rank["seen"]:
            known_rows, divisors, total = steps.get(step, (Counter(), set(), 0.0))
            steps[step] = (known_rows + Counter(rows), divisors | {divisor}, total + objective)
    return steps


def assert_same(found: dict[int, Step], wanted: dict[int, Step]) -> None:
    assert found.keys() == wanted.keys()
    for step, (rows, divisors, total) in wanted.items():
        assert found[step][0] == rows
        assert found[step][1] == divisors
        assert found[step][2] == pytest.approx(total, rel=1e-5)


def assert_same_weights(ranks: list[dict[str, Any]], wanted: dict[str, torch.Tensor]) -> None:
    for rank in ranks:
        for name, weight in wanted.items():
            torch.testing.assert_close(rank["weights"][name], weight, rtol=1e-4, atol=1e-6)


def test_one_rank(seen: Seen) -> None:
    steps = steps_of(seen("one"))
    assert [rows.total() for rows, _, _ in steps.values()] == [6, 6, 6, 4, 6, 6, 6]
    assert all(len(divisors) == 1 for _, divisors, _ in steps.values())
    assert set(sum((steps[step][0] for step in range(4)), Counter()).values()) == {1}


def test_two_ranks(seen: Seen) -> None:
    """The ranks' divisors are added up: the losses and the weights are those of one."""
    one, two = seen("one"), seen("two")
    assert len(two[0]["seen"]) == len(two[1]["seen"])
    assert_same(steps_of(two), steps_of(one))
    assert_same_weights(two, one[0]["weights"])


def test_killed_and_resumed_by_two_ranks(seen: Seen) -> None:
    """From the newest checkpoint before the kill on, which is of the end of the first epoch; packed now."""
    one, resumed = seen("one"), seen("resumed")
    assert_same(steps_of(resumed), {step: seen for step, seen in steps_of(one).items() if step >= 4})
    assert_same_weights(resumed, one[0]["weights"])


def test_the_same_as_rows_that_are_held(seen: Seen) -> None:
    """With all rows in each step, streamed or not: the same steps."""
    held, streamed = seen("all at once, not streamed"), seen("all at once")
    assert len(steps_of(held)) == STEPS
    assert_same(steps_of(streamed), steps_of(held))
    assert_same_weights(streamed, held[0]["weights"])


def test_a_bad_row_of_one_rank_stops_both_with_the_same_line(seen: Seen) -> None:
    errors = [rank["error"] for rank in seen("bad")]
    assert errors[0] == errors[1]
    assert "bad.jsonl:11: malformed JSON" in errors[0]
