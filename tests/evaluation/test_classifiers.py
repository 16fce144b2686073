"""Judges that classify texts: batches equal single texts, wrong files are told in one line, nothing is asked twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from tests.support.errors import refused
from tests.support.judges import count_rows, edit_json, write_reward_model
from ts2_lightning.evaluation.judges import Case, Equivalence, EquivalenceSettings, RewardModel, RewardSettings
from ts2_lightning.evaluation.judges import classifier as classifiers
from ts2_lightning.evaluation.judges.classifier import Classifier, ClassifierBackend, chosen_devices
from ts2_lightning.evaluation.judges.classifier_processes import _Worker
from ts2_lightning.generation import Decoder, GenerationSettings, Request

pytestmark = pytest.mark.usefixtures("judge_cache")
ROWS = [[5, 6, 7], [9], [8, 8, 8, 8, 8, 8, 8, 8], [3, 4], [3, 4], [1, 2, 3, 4, 5], [250] * 40]
SEPARATOR = 258  # [SEP] of the tiny tokenizer


def numbers(classifier: Classifier, rows: list[list[int]]) -> list[list[float]]:
    pairs = dict(pair for batch in classifier.batches(rows) for pair in batch)
    return [pairs[place] for place in range(len(rows))]


def requests(rows: list[list[int]]) -> list[Request]:
    settings = GenerationSettings("m", Decoder(temperature=0), 1)
    return [Request(tuple(row), 0, settings) for row in rows]


def cases(count: int) -> list[Case]:
    return [Case.answer(f"Question {i}?", f"Answer {'very ' * (i % 5)}{i}") for i in range(count)]


# Numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_batch_of_rewards_equals_single_texts(reward_dir: Path, batch_size: int) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(reward_dir).eval()
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row])).logits[0].tolist() for row in ROWS]
    together = numbers(Classifier(str(reward_dir), 1, batch_size=batch_size), ROWS)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=0)
    assert torch.tensor(alone).std() > 0.1  # else any number would do


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_batch_of_pairs_equals_single_pairs(similarity_dir: Path, batch_size: int) -> None:
    rows = [[257, *ROWS[i], SEPARATOR, *ROWS[-1 - i], SEPARATOR] for i in range(len(ROWS))]
    rows.append([257, 7, SEPARATOR, 8, SEPARATOR, 9, SEPARATOR])  # a text that has one itself: the first one counts
    model = AutoModelForSequenceClassification.from_pretrained(similarity_dir).eval()
    alone = []
    for row in rows:
        first = row.index(SEPARATOR) + 1
        types = torch.tensor([[0] * first + [1] * (len(row) - first)])
        with torch.no_grad():
            alone.append(model(input_ids=torch.tensor([row]), token_type_ids=types).logits[0].tolist())
    together = numbers(Classifier(str(similarity_dir), 2, batch_size=batch_size, separator=SEPARATOR), rows)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=0)
    untyped = numbers(Classifier(str(similarity_dir), 2), rows)
    assert not torch.allclose(torch.tensor(untyped), torch.tensor(alone), atol=1e-3)  # the types are seen


def test_texts_are_computed_with_those_of_like_length(reward_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def constant(self: Classifier, rows: Any) -> list[list[float]]:
        seen.append([len(row) for row in rows])
        return [[0.0]] * len(rows)

    monkeypatch.setattr(Classifier, "_numbers", constant)
    assert numbers(Classifier(str(reward_dir), 1, batch_size=3), ROWS) == [[0.0]] * len(ROWS)
    assert seen == [[40, 8, 5], [3, 2, 2], [1]]
    assert numbers(Classifier(str(reward_dir), 1), []) == []


def test_answers_keep_all_digits_of_float32(reward_dir: Path) -> None:
    backend = ClassifierBackend(str(reward_dir), 1, ["cpu"], batch_size=2)
    made = {one.key: one for one in backend.complete(iter(requests(ROWS)))}
    expected = numbers(Classifier(str(reward_dir), 1, batch_size=2), ROWS)
    for request, row in zip(requests(ROWS), expected, strict=True):
        assert torch.tensor(json.loads(made[request.key].text)).equal(torch.tensor(row))
        assert made[request.key].tokens == len(request.prompt)


def test_the_batch_is_halved_where_memory_runs_out(reward_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = numbers(Classifier(str(reward_dir), 1), ROWS)
    real, largest = Classifier._numbers, [2]

    def limited(self: Classifier, rows: Any) -> Any:
        if len(rows) > largest[0]:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, rows)

    monkeypatch.setattr(Classifier, "_numbers", limited)
    classifier = Classifier(str(reward_dir), 1, batch_size=7)
    with pytest.warns(UserWarning, match="out of memory: batch_size is 1 from here on; nothing is lost"):
        assert torch.allclose(torch.tensor(numbers(classifier, ROWS)), torch.tensor(expected), atol=1e-5)
    largest[0] = 0
    with refused("out of memory with one text of 40 tokens at a time; take a larger device"):
        numbers(Classifier(str(reward_dir), 1, batch_size=1), ROWS)


def test_another_error_is_none_of_memory(reward_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Classifier, rows: Any) -> Any:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(Classifier, "_numbers", broken)
    with pytest.raises(RuntimeError, match="size mismatch"):
        numbers(Classifier(str(reward_dir), 1), ROWS)


# What is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(reward_dir: Path, tmp_path: Path) -> Path:
    """A reward model that may be spoilt."""
    return Path(shutil.copytree(reward_dir, tmp_path / "copied"))


def check(place: Path) -> None:
    """What is said before hours of sampling, or else when the model is loaded."""
    judge = RewardModel(RewardSettings(str(place), device="cpu"))
    judge.check()
    judge.judge(cases(1))


def test_a_model_of_another_kind_is_refused(copied: Path, similarity_dir: Path) -> None:
    config = copied / "config.json"
    with refused(r"it has 2 outputs, by its config\.json; a model with 1 is needed"):
        check(similarity_dir)
    with refused(r"it has 1 outputs, by its config\.json; a model with 2 is needed"):
        Equivalence(EquivalenceSettings(str(copied))).check()
    edit_json(config, architectures=["LlamaForCausalLM"])
    with refused("it is a LlamaForCausalLM of type llama; a model saved from a"):
        check(copied)
    edit_json(config, architectures=None)
    with refused("it is a model whose config names no class of type llama"):
        check(copied)


def test_a_model_without_padding_is_refused(copied: Path) -> None:
    edit_json(copied / "config.json", pad_token_id=None)
    with refused("no pad_token_id, so transformers would read the last column of a batch, which is padding"):
        check(copied)


def test_wrong_files_are_told_in_one_line(copied: Path, tmp_path: Path) -> None:
    with refused("nowhere: cannot load this model"):
        check(tmp_path / "nowhere")
    weights = copied / "model.safetensors"
    whole = load_file(weights)
    save_file({name: one for name, one in whole.items() if name != "score.weight"}, weights, {"format": "pt"})
    with refused(r"its files lack score\.weight"):  # transformers would make one up
        check(copied)
    save_file({name: one * torch.nan for name, one in whole.items()}, weights, {"format": "pt"})
    with refused(r"it gives \[NaN\], which are no finite numbers; look at its weights"):
        check(copied)
    weights.write_bytes(weights.read_bytes()[:2000])
    with refused(r"its model\.safetensors is cut short or damaged"):
        check(copied)
    weights.rename(copied / "pytorch_model.bin")
    with refused(r"its weights are pickled \(pytorch_model\.bin\)"):
        check(copied)
    (copied / "tokenizer.json").unlink()
    with refused("reward: cannot load"):
        RewardModel(RewardSettings(str(copied))).tokenizer.get_vocab()


def test_a_text_that_the_model_does_not_take_is_refused_before_any_is_computed(tmp_path: Path) -> None:
    short = write_reward_model(tmp_path / "short", max_position_embeddings=120)
    judge = RewardModel(RewardSettings(str(short), device="cpu"))
    with refused("a text of 2[0-9][0-9] tokens is longer than the context of llama, 120 tokens; set its max_tokens"):
        judge.judge([*cases(2), Case.answer("Q", "long " * 40)])
    assert judge.cost(cases(2)).calls == 2
    cut = RewardModel(RewardSettings(str(short), max_tokens=120, device="cpu"))
    assert cut.judge([Case.answer("Q", "long " * 40)])[0].value is not None
    assert len(cut.prompt(Case.answer("Q", "long " * 40))) == 120
    backend = ClassifierBackend(str(short), 1, ["cpu"])
    with refused("token id 9999 has no row in its embedding, which has 261"):
        backend.check(requests([[1, 9999]]))
    with refused("there is a text without a token"):
        backend.check(requests([[]]))


def test_a_device_that_is_not_there_is_refused() -> None:
    assert chosen_devices(" cpu , cpu") == ["cpu", "cpu"]
    with refused("device 'gpu': "):
        chosen_devices("cpu,gpu")


# Nothing twice --------------------------------------------------------------------------------------------------


def verdict_lines(cache: Path) -> list[dict[str, Any]]:
    parts = sorted(cache.glob("judges/*/responses/*/part-*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()[1:]]


DIES = """
import os, signal, sys
from ts2_lightning.evaluation.judges import Case, RewardModel, RewardSettings
from ts2_lightning.evaluation.judges.classifier import Classifier
from ts2_lightning.generation import store
store._WRITE_AFTER = 0.0
real, done = Classifier._numbers, [0]
def dies(self, rows):
    done[0] += 1
    if done[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, rows)
Classifier._numbers = dies
cases = [Case.answer(f"Question {i}?", f"Answer {'very ' * (i % 5)}{i}") for i in range(20)]
RewardModel(RewardSettings(sys.argv[1], batch_size=3, device="cpu")).judge(cases)
"""


@pytest.mark.slow
def test_a_judge_that_was_killed_goes_on(reward_dir: Path, judge_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(reward_dir)], env={**os.environ, "PYTHONPATH": str(root)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    there = len(verdict_lines(judge_cache))
    assert 0 < there <= 9
    asked = count_rows(monkeypatch)
    judge = RewardModel(RewardSettings(str(reward_dir), batch_size=3, device="cpu"))
    rewards = [verdict.value for verdict in judge.judge(cases(20))]
    assert sum(asked) == 20 - there
    keys = [line["key"] for line in verdict_lines(judge_cache)]
    assert len(keys) == len(set(keys)) == 20
    monkeypatch.setenv("TS2_CACHE_DIR", str(judge_cache) + "2")
    assert [verdict.value for verdict in judge.judge(cases(20))] == pytest.approx(rewards, abs=1e-5)


@pytest.mark.slow
def test_two_processes_share_the_texts(reward_dir: Path, judge_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = RewardModel(RewardSettings(str(reward_dir), batch_size=2, device="cpu,cpu"))
    rewards = [verdict.value for verdict in judge.judge(cases(12))]
    workers = judge.make_backend()._workers._workers  # type: ignore[attr-defined]
    assert [worker._is_ready for worker in workers] == [True, True]
    assert [verdict.value for verdict in judge.judge(cases(13))][:12] == rewards  # they stay for the next ones
    keys = [line["key"] for line in verdict_lines(judge_cache)]
    assert len(keys) == len(set(keys)) == 13
    workers[0]._process.kill()
    with refused(r"the process of .* on cpu has ended \(exit status -9.*\); the same command goes on where it was"):
        judge.judge(cases(40))
    assert all(worker._process.poll() is not None for worker in workers)
    monkeypatch.setattr(classifiers, "chosen_devices", lambda devices: ["cpu"])  # the rest in this process
    judge.close()
    assert [verdict.value for verdict in judge.judge(cases(40))][:12] == rewards
    monkeypatch.setenv("TS2_CACHE_DIR", str(judge_cache) + "2")
    assert [verdict.value for verdict in judge.judge(cases(12))] == pytest.approx(rewards, abs=1e-5)


def test_how_a_process_ended_is_the_same_to_all_that_ask(reward_dir: Path) -> None:
    """Whoever waits for it, and whoever ends all of them, may do so at once."""
    worker = _Worker({"place": str(reward_dir), "labels": 1, "batch_size": 2, "device": "cpu"})
    at_once = Barrier(4)

    def end(_: int) -> str:
        at_once.wait()
        return worker.end()

    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(end, range(4)))
    assert len({*told, worker.end()}) == 1
    assert told[0].startswith("exit status -9; its log ")


@pytest.mark.slow
def test_what_a_process_cannot_load_is_told_in_one_line(copied: Path) -> None:
    judge = RewardModel(RewardSettings(str(copied), device="cpu,cpu"))
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with refused(r"copied: cannot load this model \(its model\.safetensors is cut short"):
        judge.judge(cases(3))
