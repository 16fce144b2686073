"""Protocols on models: exact probabilities of right answers, several processes; and the example of the page."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.canned import Canned, canned_model
from ts2_lightning.evaluation import Model, check_spec, make_measures
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.toyworld import build_tokenizer, load_world
from ts2_lightning.toyworld.tokenizer import model_config

ROOT = Path(__file__).resolve().parents[2]
WORLD = """
from dataclasses import dataclass
from typing import ClassVar
from ts2_lightning.evaluation.protocols import DataSet, Item, Protocol, Sampling, Scored

@dataclass(frozen=True)
class FirstWord(Protocol):
    name: ClassVar[str] = "first_word"
    data_sets: ClassVar = {"world": DataSet("nobody/world", "test", 3, "request and words")}
    samplings: ClassVar = {"paper": Sampling(400, temperature=1.0, max_new_tokens=1)}

    def item(self, row, data_set):
        return Item(str(row.number), row.text("request"), row.fields["words"], opening="the answer is")

    def score(self, item, responses):
        return [Scored(one.key, one.text, float(one.text in item.gold)) for one in responses]
"""


@pytest.fixture
def toy_model(tmp_path: Path) -> Model:
    """A model of the toy world with random weights, whose distributions are far from flat."""
    torch.manual_seed(3)
    network = AutoModelForCausalLM.from_config(model_config()).eval()
    with torch.no_grad():
        network.get_input_embeddings().weight.mul_(3)
    model = Model.in_memory(network, build_tokenizer())
    model.out = tmp_path / "out"
    return model


def test_sampled_accuracy_is_the_exact_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_model: Model
) -> None:
    """In the toy world all answers are known, and the probability of a right first word can be read off."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "first_word_protocol.py").write_text(WORLD)
    families = load_world().families[:3]
    rows = [
        {"request": family.requests[0], "words": sorted({answer.split()[0] for answer in family.answers})}
        for family in families
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = check_spec({"first_word_protocol.FirstWord": {"data": str(tmp_path / "rows.jsonl"), "ks": [1, 2]}})
    values = make_measures(toy_model, spec, lambda line: None, draw=False)
    exact = []
    tokenizer: Any = toy_model.tokenizer
    for row in rows:
        chat = [{"role": "user", "content": row["request"]}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        ids = torch.tensor([[*prompt, *tokenizer("the answer is", add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            p = toy_model.network(ids).logits[0, -1].double().softmax(-1)
        exact.append(sum(p[tokenizer.convert_tokens_to_ids(word)].item() for word in row["words"]))
    sd = (sum(p * (1 - p) for p in exact) / 400) ** 0.5 / 3
    assert 0.01 < sum(exact) / 3 < 0.99
    assert values["first_word/accuracy"] == pytest.approx(sum(exact) / 3, abs=4 * sd)
    at_2 = sum(1 - (1 - p) ** 2 for p in exact) / 3
    assert values["first_word/pass_at_2"] == pytest.approx(at_2, abs=8 * sd)
    assert values["first_word/truncated"] > 0.9  # one token each


# Several processes ----------------------------------------------------------------------------------------------


def evaluation(model: Path, data: Path, out: Path, n: int) -> list[str]:
    words = ["evaluate", str(model), "--protocol", "gsm8k", "--data", f"gsm8k={data}", "--n", str(n), "--out", str(out)]
    more = ["--set", "gsm8k.max_new_tokens=24", "--set", "gsm8k.greedy=false", "--batch_size", "8"]
    return [sys.executable, str(ROOT / "cli.py"), *words, *more]


def values_of(out: Path) -> dict[str, float]:
    [file] = out.glob("*/measures/gsm8k-*.json")
    return dict(read_result(file).values)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_shared_evaluations_have_the_values_of_one(tmp_path: Path, shared_data: Path) -> None:
    """On stories260K, a real model: one process; one that is killed and resumed; two at a time."""
    model = shared_data / "models/stories260K"
    data = tmp_path / "rows.jsonl"
    rows = [{"question": f"Tom has {i} apples and gets {i}. How many?", "answer": f"#### {2 * i}"} for i in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(out: str) -> "subprocess.Popen[str]":
        command = evaluation(model, data, tmp_path / out, n=8)
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)

    def end(process: "subprocess.Popen[str]") -> None:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-2000:]

    end(start("alone"))
    killed = start("killed")
    deadline = time.monotonic() + 200
    while not [*(tmp_path / "killed").glob("*/responses/*/part-*.jsonl")] and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    both = [start("both"), start("both")]
    for process in both:
        end(process)
    end(start("killed"))
    alone = values_of(tmp_path / "alone")
    assert values_of(tmp_path / "killed") == alone
    assert values_of(tmp_path / "both") == alone
    assert (alone["gsm8k/questions"], alone["gsm8k/samples"]) == (6, 8)
    for out in ("killed", "both"):
        parts = [*(tmp_path / out).glob("*/responses/gsm8k-*/part-*.jsonl")]
        lines = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
        keys = [line["key"] for line in lines if "key" in line]
        assert len(keys) == len({*keys}) == 48


# The page -------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/protocols.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_protocols.py").write_text(example)
    data = tmp_path / "riddles.jsonl"
    data.write_text('{"riddle": "What has ears and hears nothing?", "solution": "corn"}\n')
    texts = ["It is corn.", "No idea.", "CORN!", "Wheat"]
    backend = Canned(lambda question, index: texts[index])
    spec = check_spec({"my_protocols.Riddles": {"data": str(data), "n": 4}})
    values = make_measures(canned_model(tmp_path / "out", backend), spec, lambda line: None, draw=False)
    assert backend.made[0][0] == "Solve this riddle: What has ears and hears nothing?"
    assert values["riddles/accuracy"] == 0.5
    assert values["riddles/unparsed"] == 0.5
    sys.modules.pop("my_protocols", None)


def test_every_protocol_is_in_the_table_of_the_page() -> None:
    from ts2_lightning.evaluation.registry import PROTOCOLS

    page = (ROOT / "docs/protocols.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [\d,]+", page, re.M)
    assert {*rows} == {protocol.name for protocol in PROTOCOLS}


@pytest.mark.slow
def test_a_real_model_is_asked_in_text_it_continues(tmp_path: Path, shared_data: Path) -> None:
    """TOFU's delimiters stand outside any chat: the prompt is the text's own tokens, and begins as texts do."""
    place = str(shared_data / "models/stories260K")
    rows = [{"question": "Which?", "choices": ["gold", "iron"], "answer": "B"}]
    data = tmp_path / "mmlu.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = Model("stories", "stories", lambda: place, tmp_path / "out")
    spec = check_spec({"mmlu": {"data": str(data), "variant": "papers_code"}})
    [protocol] = spec.measures
    [part] = protocol.parts()  # type: ignore[attr-defined]
    asked = protocol.asked(model, part)  # type: ignore[attr-defined]
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert list(asked.prompts[0]) == tokenizer(asked.items[0].question)["input_ids"]
    assert asked.prompts[0][0] == tokenizer.bos_token_id
    assert asked.settings.max_new_tokens == 8
    assert asked.settings.decoder.temperature == 0
    values = make_measures(model, spec, lambda line: None, draw=False)
    assert values["mmlu/questions"] == 1
    assert values["mmlu/chance"] == 0.5
