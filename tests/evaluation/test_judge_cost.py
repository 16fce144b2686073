"""What judges cost: the line before they start, the estimate, and the limit that stops them."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.counting_judge import CASES, PROMPT, CountingJudge, asked_text, judge_of, told, well
from ts2_lightning.evaluation import check_spec
from ts2_lightning.evaluation.judges import Case, JudgePrompt, spending_limit
from ts2_lightning.evaluation.judges.spending import Prices, estimated_tokens
from ts2_lightning.evaluation.protocols import Protocol
from ts2_lightning.evaluation.protocols.stories import _INSTRUCTION
from ts2_lightning.generation.backends import json_client
from ts2_lightning.types import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(json_client, "_LONGEST_WAIT", 0.01)


def test_the_cost_is_said_beforehand(caplog: pytest.LogCaptureFixture) -> None:
    with CountingJudge(well) as server, caplog.at_level("INFO"):
        judge = judge_of(
            server, max_new_tokens=20, prompt_price=1000.0, completion_price=5000.0, temperature=1, votes=2
        )
        judge_of(server, temperature=1, max_new_tokens=20).judge(CASES[:10])
        cost = judge.cost(CASES)
        calls = [*CASES, *CASES[10:]]
        tokens = sum(math.ceil(len(asked_text(case)) / 4) for case in [*CASES, *CASES[10:]])
        assert (cost.calls, cost.prompt_tokens, cost.new_tokens) == (len(calls), tokens, 20 * len(calls))
        assert cost.is_estimate
        assert cost.dollars == pytest.approx((tokens * 1000 + 20 * len(calls) * 5000) / 1e6)
        caplog.clear()
        judge.judge(CASES)
    dollars = f"{cost.dollars:,.2f}"
    expected = f"fruit: 70 verdicts by m, about {tokens:,} prompt tokens and at most 1,400 new ones: ${dollars}"
    read = sum(len(asked_text(case)) // 4 for case in calls)
    used = f"fruit: m has counted {read:,} prompt tokens and 210 new ones: ${(read * 1000 + 210 * 5000) / 1e6:,.2f}"
    assert [record.getMessage() for record in caplog.records if "fruit" in record.getMessage()] == [expected, used]
    assert judge.cost(CASES).calls == 0
    caplog.clear()
    judge.judge(CASES)
    assert not caplog.records


def test_an_estimate_above_the_limit_asks_nothing() -> None:
    with CountingJudge(well) as server, spending_limit(0.05):
        judge = judge_of(server, max_new_tokens=100, prompt_price=0.0, completion_price=20.0)
        assert judge.cost(CASES).dollars == pytest.approx(0.08)
        told(
            lambda: judge.judge(CASES), r"fruit: 40 verdicts cost up to $0.0800, more than --max_cost $0.0500; raise it"
        )
        assert not server.bodies
        judge.judge(CASES[:25])  # exactly the limit
        assert len(server.bodies) == 25


@pytest.mark.parametrize("concurrency", [1, 6])
def test_what_was_used_stops_it_and_what_was_judged_stays(concurrency: int) -> None:
    """The server counts ten times the tokens of the estimate."""
    prices = Prices(100.0, 0.0)
    with CountingJudge(well, usage=lambda text: (10 * math.ceil(len(text) / 4), 3)) as server:
        how: dict[str, Any] = {"prompt_price": 100.0, "completion_price": 0.0, "concurrency": concurrency}
        each = prices.of(10 * estimated_tokens(PROMPT.asked(CASES[0])), 0)
        limit = judge_of(server, **how).cost(CASES).dollars or 0
        with spending_limit(limit) as spending:
            message = told(lambda: judge_of(server, **how).judge(CASES), "and the next verdict might pass it; what was")
        assert spending is not None
        used = len(server.bodies)
        assert message.startswith("fruit: $")
        assert 0 < used < len(CASES)
        assert spending.dollars == pytest.approx(used * each, rel=0.1)
        taken_before_it_is_known = 2 * concurrency if concurrency > 1 else 0
        assert spending.dollars <= limit + taken_before_it_is_known * each
        assert judge_of(server, **how).cost(CASES).calls == len(CASES) - used
        judge_of(server, **how).judge(CASES)
        assert set(server.answered.values()) == {1}


def test_the_limit_is_kept_where_the_estimate_is_right() -> None:
    """However many are under way, what they may take at most is set aside; it goes on as long as there is room."""
    with CountingJudge(well, usage=lambda text: (math.ceil(len(text) / 4), 1)) as server:
        how: dict[str, Any] = {"prompt_price": 0.0, "completion_price": 1.0, "concurrency": 8, "max_new_tokens": 10}
        with spending_limit(400e-6) as spending:
            judge_of(server, **how).judge(CASES)  # 400 tokens at most, 40 in the end
            assert spending is not None
            assert spending.dollars == pytest.approx(40e-6)
            more = [Case.answer("more", str(i)) for i in range(36)]
            judge_of(server, **how).judge(more)
            assert spending.dollars == pytest.approx(76e-6)
            many = [Case.answer("many", str(i)) for i in range(33)]
            told(lambda: judge_of(server, **how).judge(many), "of which $0.0001 is spent")
        assert len(server.bodies) == 76


def test_a_server_that_counts_nothing_is_paid_by_the_estimate() -> None:
    with CountingJudge(well, usage=lambda text: (0, 3)) as server, spending_limit(1.0) as spending:
        judge_of(server, prompt_price=100.0, completion_price=10.0, concurrency=1).judge(CASES)
        tokens = sum(estimated_tokens(PROMPT.asked(case)) for case in CASES)
        assert spending is not None
        assert spending.dollars == pytest.approx((100 * tokens + 10 * 3 * len(CASES)) / 1e6)


def test_a_limit_holds_for_all_judges_within_it_and_for_none_behind() -> None:
    with CountingJudge(well) as server:
        how: dict[str, Any] = {"max_new_tokens": 100, "prompt_price": 0.0, "completion_price": 20.0}
        with spending_limit(0.081) as spending:
            judge_of(server, **how).judge(CASES)
            other = JudgePrompt("other", "Rate {response}. Rating:")
            assert spending is not None
            assert spending.dollars == pytest.approx(40 * 3 * 20 / 1e6)
            words = "other: 40 verdicts cost up to $0.0800"
            told(lambda: judge_of(server, other, **how).judge([*CASES, CASES[0]]), words)
        judge_of(server, other, **how).judge(CASES)
        with spending_limit(None) as spending:
            assert spending is None


def test_a_limit_without_prices() -> None:
    with CountingJudge(well) as server, spending_limit(1.0):
        message = "fruit: --max_cost needs to know what m costs; say it with --price IN,OUT"
        told(judge_of(server).check, message)
        told(lambda: judge_of(server).judge(CASES), message)
    with pytest.raises(UserError, match="max_cost must be a finite number above 0, got 0"), spending_limit(0):
        pass


def test_a_plan_counts_verdicts_before_any_response_is_there() -> None:
    """Of a protocol with its settings alone: questions x samples x votes, at the prices of the longest texts."""

    def judging(spec: dict[str, Any], responses: int = 1_000) -> dict[str, float]:
        [protocol] = check_spec(spec).measures
        assert isinstance(protocol, Protocol)
        return dict(protocol.judging(responses))

    judge = {"model": "endpoint:http://localhost:9#m", "api_key_env": "", "votes": 3, "temperature": 1.0}
    assert judging({"stories": {"judge": judge}}) == {"judge calls": 3_000}
    priced = {**judge, "prompt_price": 2.0, "completion_price": 8.0, "max_new_tokens": 20}
    plan = judging({"stories": {"judge": priced, "max_new_tokens": 64}})
    prompt = estimated_tokens(_INSTRUCTION)
    assert plan["judge calls"] == 3_000
    assert plan["dollars, about"] == pytest.approx(3_000 * ((prompt + 64) * 2 + 20 * 8) / 1e6)
    assert judging({"stories": {}}) == {"judge calls": 1_000}, "nobody is named, and many would be asked all the same"
    assert judging({"malicious_instruct": {}}) == {}, "a list of phrases asks nobody"
    assert judging({"alpaca": {"reward": "somebody/reward"}}) == {"judge calls": 1_000}
    assert judging({"novelty": {"n": 5}}) == {"judge calls": 1_000 + 200 * 10}, "ratings, and pairs"
    assert judging({"novelty": {"equivalence": "unigram", "reward": None}}) == {}
