"""AlpacaEval on responses that are written here, with a tiny reward model: every value by brute force."""

import gzip
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.support.canned import Canned, canned_model
from tests.support.errors import refused
from tests.support.judges import LLAMA_3, count_rows
from ts2_lightning.evaluation import Model, check_spec, describe, files_of, make_measures
from ts2_lightning.evaluation.judges import Case, ChatSettings, RewardModel, RewardSettings
from ts2_lightning.evaluation.judges.equivalence import EquivalenceSettings
from ts2_lightning.evaluation.judges.reward import SAID
from ts2_lightning.evaluation.preferences import win_at_equal_length
from ts2_lightning.evaluation.protocols.alpaca import AlpacaEval
from ts2_lightning.evaluation.protocols.novelty import NoveltyBench
from ts2_lightning.evaluation.protocols.safety import MaliciousInstruct
from ts2_lightning.evaluation.protocols.sections import value_sections
from ts2_lightning.evaluation.protocols.stories import Stories
from ts2_lightning.evaluation.protocols.tables import Evaluated
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.generation import Response
from ts2_lightning.metrics import functional as f
from ts2_lightning.pages import Chart

pytestmark = pytest.mark.usefixtures("judge_cache")
QUESTIONS = ["Name a fruit.", "Is rain wet?", "Write a line."]
OUTPUTS = ["A plum.", "Yes.", "The sun came up over the hill, and nobody saw it."]
N = 4


def answers(question: str, index: int) -> str:
    return f"{'so ' * (index * 3 % 5)}{question[index:]} {index}"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Instructions and outputs in AlpacaEval's layout, the outputs in another order."""
    rows = [{"dataset": "d", "instruction": question, "output": "x", "generator": "g"} for question in QUESTIONS]
    outputs = [{"instruction": q, "output": o, "generator": "other"} for q, o in zip(QUESTIONS, OUTPUTS, strict=True)]
    return {
        "data": write(tmp_path / "alpaca.jsonl", rows),
        "baseline": write(tmp_path / "outputs.jsonl", outputs[::-1]),
    }


def asked(files: dict[str, str], reward_dir: Path, **changes: Any) -> dict[str, Any]:
    return {"alpaca": {**files, "reward": str(reward_dir), "n": N, **changes}}


def measured(model: Any, spec: dict[str, Any]) -> dict[str, float]:
    values = make_measures(model, check_spec(spec), lambda line: None, draw=False)
    return {name.removeprefix("alpaca/"): value for name, value in values.items()}


def documents(model: Any, spec: dict[str, Any]) -> Any:
    [file] = files_of(model.out, check_spec(spec)).values()
    return read_result(file).documents


def rewards_of(reward_dir: Path, texts: list[list[str]], **settings: Any) -> list[list[float]]:
    judge = RewardModel(RewardSettings(str(reward_dir), device="cpu", **settings))
    return [
        [verdict.value or 0.0 for verdict in judge.judge([Case.answer(question, text) for text in of_question])]
        for question, of_question in zip(QUESTIONS, texts, strict=True)
    ]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean_of_best(of_questions: list[list[float]], k: int) -> float:
    """The mean over questions of the mean over all sets of k of the best."""
    return statistics.fmean(
        statistics.fmean(max(chosen) for chosen in itertools.combinations(of_question, k))
        for of_question in of_questions
    )


TEXTS = [[answers(question, index) for index in range(N)] for question in QUESTIONS]


# Values ---------------------------------------------------------------------------------------------------------


def test_values_are_those_of_all_subsets(tmp_path: Path, files: dict[str, str], reward_dir: Path) -> None:
    backend = Canned(answers)
    model, spec = canned_model(tmp_path / "out", backend), asked(files, reward_dir)
    values = measured(model, spec)
    ours, theirs = rewards_of(reward_dir, TEXTS), rewards_of(reward_dir, [[output] for output in OUTPUTS])
    pairs = list(zip(ours, theirs, strict=True))
    wins = [[100 * sigmoid(r - other) for r in of_question] for of_question, [other] in pairs]
    sharp = [[100.0 * (r > other) for r in of_question] for of_question, [other] in pairs]
    above = [[100.0 * (r > 0) for r in of_question] for of_question in ours]
    for k, end in ((1, ""), (2, "_at_2"), (4, "_at_4")):
        assert values[f"win_rate{end}"] == pytest.approx(mean_of_best(wins, k), abs=1e-3)
        assert values[f"wins{end}"] == pytest.approx(mean_of_best(sharp, k), abs=1e-3)
        assert values[f"positive{end}"] == pytest.approx(mean_of_best(above, k), abs=1e-3)
        assert values[f"reward{end}"] == pytest.approx(mean_of_best(ours, k), abs=1e-4)
    assert 0 < values["wins"] < 100  # rewards on both sides, or the test sees little
    lengths = [
        [len(text) - len(output) for text in of_question] for of_question, output in zip(TEXTS, OUTPUTS, strict=True)
    ]
    at_equal = win_at_equal_length([[win / 100 for win in of] for of in wins], lengths)
    assert values["lc_win_rate"] == pytest.approx(100 * at_equal.mean, abs=1e-2)
    assert values["lc_win_rate_at_4"] != pytest.approx(values["lc_win_rate"], abs=1e-2)
    assert values["longer"] > 0.5
    assert values["longer"] == pytest.approx(statistics.fmean(length > 0 for of in lengths for length in of))
    assert values["characters"] == pytest.approx(statistics.fmean(len(text) for of in TEXTS for text in of))
    assert values["self_bleu_diversity"] == pytest.approx(100 - statistics.fmean(f.self_bleu(of) for of in TEXTS))
    assert (values["questions"], values["samples"], values["judge_unparsed"]) == (3, N, 0)
    kept = documents(model, spec)
    assert statistics.fmean(kept["per_item"]["win_rate_at_4"].values()) == pytest.approx(values["win_rate_at_4"])
    assert list(kept["per_item"]["win_rate"]) == ["0", "1", "2"]
    assert set(kept["curves"]) == {"win_rate", "lc_win_rate"}
    mean, low, high = kept["curves"]["win_rate"]["2"]
    assert mean == pytest.approx(values["win_rate_at_2"])
    assert low <= mean <= high
    assert describe("alpaca/win_rate_at_32").title == "alpaca: win rate, best of 32"
    [file] = files_of(model.out, check_spec(spec)).values()
    charts = [one for one in value_sections([Evaluated("m", {"alpaca": read_result(file)})]) if isinstance(one, Chart)]
    [chart] = [one for one in charts if one.title == "alpaca: best of k responses"]
    assert (chart.y, [*chart.series[0].x]) == ("win rate, %", [1, 2, 4])
    assert [*chart.series[0].y] == pytest.approx([values[f"win_rate{end}"] for end in ("", "_at_2", "_at_4")])
    assert len(backend.made) == 3 * N


def test_the_papers_code_takes_the_first_responses(local: Model, files: dict[str, str], reward_dir: Path) -> None:
    spec = asked(files, reward_dir, variant="papers_code")
    values = measured(local, spec)
    judge = RewardModel(RewardSettings(str(reward_dir), "papers_code", device="cpu"))
    ours, theirs = [], []
    for question, output in zip(QUESTIONS, OUTPUTS, strict=True):
        said = f"system\n\nToday.{question}"
        cases = [Case.answer(question, answers(question, i)) for i in range(N)]
        shown = [Case(case.messages, case.response, details={SAID: said}) for case in cases]
        ours.append([verdict.value or 0.0 for verdict in judge.judge(shown)])
        theirs.append(judge.judge([Case.answer(question, output)])[0].value or 0.0)  # as that code reads a file
    for k in (1, 2, 4):
        best = [max(of_question[:k]) for of_question in ours]
        rates = [100 * sigmoid(r - other) for r, other in zip(best, theirs, strict=True)]
        assert values[f"first_{k}"] == pytest.approx(statistics.fmean(rates), abs=1e-3)
        assert values[f"first_positive_{k}"] == pytest.approx(100 * statistics.fmean(r > 0 for r in best))
        assert values[f"first_reward_{k}"] == pytest.approx(statistics.fmean(best), abs=1e-4)
        means = [statistics.fmean(of_question[:k]) for of_question in ours]
        assert values[f"first_mean_{k}"] == pytest.approx(statistics.fmean(means), abs=1e-4)
    assert values["first_1"] != pytest.approx(values["win_rate"], abs=0.01)
    plain = measured(local, asked(files, reward_dir))
    assert plain["reward"] != pytest.approx(values["reward"], abs=1e-3)  # another format
    assert not any(name.startswith("first_") for name in plain)


def test_the_format_may_be_chosen_by_itself(local: Model, files: dict[str, str], reward_dir: Path) -> None:
    both = {"model": str(reward_dir), "format": "model"}
    values = measured(local, asked(files, reward_dir, variant="papers_code", reward=both))
    assert values["reward"] == pytest.approx(measured(local, asked(files, reward_dir))["reward"], abs=1e-5)
    assert values["first_4"] == pytest.approx(values["win_rate_at_4"])
    assert AlpacaEval().sampling.n == 32
    assert AlpacaEval(variant="papers_code").sampling.n == 16


def test_one_response_is_enough(tmp_path: Path, files: dict[str, str], reward_dir: Path) -> None:
    for changes in ({"n": 1}, {"n": 1, "temperature": 0}):
        values = measured(canned_model(tmp_path / "out", Canned(answers)), asked(files, reward_dir, **changes))
        assert not any("_at_" in name or "bleu" in name for name in values)
        assert 0 < values["win_rate"] < 100


# Against what ---------------------------------------------------------------------------------------------------


def test_another_run_is_compared_at_the_same_n(tmp_path: Path, files: dict[str, str], reward_dir: Path) -> None:
    first = canned_model(tmp_path / "first", Canned(answers))
    measured(first, asked(files, reward_dir))
    spec = asked({**files, "baseline": str(first.out)}, reward_dir)
    itself = measured(canned_model(tmp_path / "twin", Canned(answers)), spec)
    for name in ("win_rate", "win_rate_at_2", "win_rate_at_4", "wins", "wins_at_2", "wins_at_4"):
        assert itself[name] == pytest.approx(50, abs=1e-3)
    worse = measured(canned_model(tmp_path / "worse", Canned(lambda question, index: f"{index}{index}")), spec)
    ours = rewards_of(reward_dir, [[f"{i}{i}" for i in range(N)]] * 3)
    theirs = rewards_of(reward_dir, TEXTS)
    of_questions = []
    for mine, other in zip(ours, theirs, strict=True):
        sets = [[max(chosen) for chosen in itertools.combinations(side, 2)] for side in (mine, other)]
        of_questions.append(statistics.fmean(sigmoid(a - b) for a, b in itertools.product(*sets)))
    assert worse["win_rate_at_2"] == pytest.approx(100 * statistics.fmean(of_questions), abs=1e-3)
    with refused("no question has 8 responses; the most are 4"):
        measured(
            canned_model(tmp_path / "more", Canned(answers)),
            asked({**files, "baseline": str(first.out)}, reward_dir, n=8),
        )
    with refused(r"alpaca\.baseline .*: no responses but those of models in it; name one, such as .*/first$"):
        measured(
            canned_model(tmp_path / "all", Canned(answers)), asked({**files, "baseline": str(tmp_path)}, reward_dir)
        )


def test_another_baseline_asks_for_its_own_outputs_alone(
    tmp_path: Path, files: dict[str, str], reward_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = canned_model(tmp_path / "out", Canned(answers))
    before = measured(model, asked(files, reward_dir))
    seen = count_rows(monkeypatch)
    other = write(tmp_path / "others.jsonl", [{"instruction": q, "output": OUTPUTS[0]} for q in QUESTIONS])
    after = measured(model, asked({**files, "baseline": other}, reward_dir))
    assert sum(seen) == 2  # that of the first question is there
    assert after["reward"] == before["reward"]
    assert after["win_rate"] != before["win_rate"]
    assert measured(model, asked(files, reward_dir)) == before
    assert sum(seen) == 2


def test_instructions_without_an_output_are_left_out_with_a_line(
    tmp_path: Path, files: dict[str, str], reward_dir: Path
) -> None:
    backend = Canned(answers)
    outputs = write(tmp_path / "two.jsonl", [{"instruction": q, "output": "x"} for q in QUESTIONS[1:]])
    with pytest.warns(
        UserWarning, match=r"no output to 1 of 3 instructions, which are left out, such as 'Name a fruit\.'"
    ):
        values = measured(canned_model(tmp_path / "out", backend), asked({**files, "baseline": outputs}, reward_dir))
    assert values["questions"] == 2
    assert len(backend.made) == 2 * N  # nothing is sampled in vain
    none = write(tmp_path / "none.jsonl", [{"instruction": "Else?", "output": "x"}])
    with refused(r"alpaca\.baseline: .*none\.jsonl has no output to any of the 3 instructions"):
        measured(canned_model(tmp_path / "out", backend), asked({**files, "baseline": none}, reward_dir))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "a"}, r"bad\.jsonl:1: no field 'output'; wanted are rows with instruction and output"),
        ({"instruction": "a", "output": 3}, r"bad\.jsonl:1: output must be text, got '3'"),
    ],
)
def test_a_bad_row_of_outputs_is_told_before_anything_is_sampled(
    tmp_path: Path, files: dict[str, str], reward_dir: Path, row: dict[str, Any], said: str
) -> None:
    backend = Canned(answers)
    bad = write(tmp_path / "bad.jsonl", [row])
    with refused(said):
        measured(canned_model(tmp_path / "out", backend), asked({**files, "baseline": bad}, reward_dir))
    with refused(r"alpaca\.baseline: "):
        measured(
            canned_model(tmp_path / "out", backend),
            asked({**files, "baseline": str(tmp_path / "no.jsonl")}, reward_dir),
        )
    assert not backend.made


def test_alpaca_evals_own_files_are_read(shared_data: Path, reward_dir: Path) -> None:
    file = str(shared_data / "sft/alpaca_eval_605_gpt4_1106_preview.jsonl.gz")
    protocol = AlpacaEval(data=file, baseline=file, reward=RewardSettings(str(reward_dir)))
    items = protocol.items("alpaca")
    with gzip.open(file, "rt") as stream:
        rows = [json.loads(line) for line in stream]
    assert len(items) == 605
    assert protocol.opponents[items[7].question].texts == [rows[7]["output"]]
    assert items[0].details == {"dataset": "helpful_base"}


# What the papers' code shows ------------------------------------------------------------------------------------


class Local(Canned):
    """Canned responses to prompts in tokens."""

    def __init__(self, model: Model) -> None:
        super().__init__(answers)
        self.model = model

    def complete(self, requests: Any) -> Any:
        """The response to the question in the prompt."""
        for request in requests:
            said = self.model.tokenizer.decode(list(request.prompt))
            question = next(question for question in QUESTIONS if question in said)
            self.made.append((question, request.index, 0.0))
            yield Response(request.key, answers(question, request.index), 3, "stop")


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward_dir: Path) -> Model:
    """A model without weights, whose template writes a system turn of its own, as that of Llama 3.1 does."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(reward_dir)
    system = "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday.<|eot_id|>"
    tokenizer.chat_template = LLAMA_3.replace("{{ bos_token }}", system)
    model = Model("model", "model", lambda: "nowhere", tmp_path / "out")
    model.__dict__.update(tokenizer=tokenizer, end_ids=[259])
    backend = Local(model)
    monkeypatch.setattr(Model, "make_backend", lambda self, batch_size: backend)
    return model


def test_the_papers_code_needs_the_whole_prompt(
    tmp_path: Path, local: Model, files: dict[str, str], reward_dir: Path
) -> None:
    backend = Canned(answers)
    served = canned_model(tmp_path / "served", backend)
    spec = asked(files, reward_dir, variant="papers_code")
    with refused("an endpoint does not say its template; set reward.format to model"):
        measured(served, spec)
    measured(local, asked(files, reward_dir))
    kept = Model("kept", "kept", lambda: "nowhere", tmp_path / "elsewhere", responses=local.out)
    with refused("the format papers_code is of the model's whole prompt, and nothing says it of these responses"):
        measured(kept, spec)
    assert measured(local, spec) == measured(kept, spec)


def test_the_model_that_is_used_is_the_one_of_the_settings(reward_dir: Path) -> None:
    assert AlpacaEval(reward=RewardSettings(str(reward_dir))).models_used == str(reward_dir)
    assert NoveltyBench(reward=None, equivalence=EquivalenceSettings("unigram")).models_used == "none"
    assert MaliciousInstruct().models_used == "none"
    assert Stories(judge=ChatSettings("endpoint:http://localhost:9/v1#m", api_key_env="")).models_used == "m"
    assert Stories().models_used == Stories.models_needed  # nobody is named yet


def test_settings_that_no_value_depends_on_are_none_of_the_values(reward_dir: Path) -> None:
    first = AlpacaEval(reward=RewardSettings(str(reward_dir)))
    other = AlpacaEval(reward=RewardSettings(str(reward_dir), "model", device="cpu", batch_size=2))
    assert first.plain_settings() == other.plain_settings()
    assert first.plain_settings()["reward"]["format"] == "model"
    assert AlpacaEval(variant="papers_code").plain_settings()["reward"]["format"] == "papers_code"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": {"model": "r", "batch_size": 0}}, "batch_size must be a whole number of at least 1, got 0"),
        ({"reward": {"modle": "r"}}, r"measure\.alpaca\.reward: no setting 'modle'; did you mean model\?"),
        ({"metrics": "code"}, r"measure\.alpaca\.metrics: expected"),
        ({"ks": [64]}, "ks must be"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(
    files: dict[str, str], reward_dir: Path, changes: dict[str, Any], said: str
) -> None:
    with refused(said):
        check_spec(asked(files, reward_dir, **changes))
