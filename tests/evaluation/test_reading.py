"""A model that reads what another one wrote: its cross-entropy, by itself and as a value of `diversity`."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ts2_lightning.evaluation import Model, check_spec, make_measures
from ts2_lightning.evaluation.loading import load_model
from ts2_lightning.evaluation.reading import response_cross_entropy
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.toyworld.base import write_blank_model
from ts2_lightning.types import UserError

PAIRS = [((1, 5, 6), (7, 8, 2)), ((1,), ()), ((1, 9), (3,) * 9)]


def reference(network: LlamaForCausalLM, prompt: tuple[int, ...], response: tuple[int, ...]) -> list[float]:
    """Nats of each token of the response, from all logits, in float64."""
    with torch.no_grad():
        log_probabilities = network(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
    return [-float(log_probabilities[len(prompt) + i - 1, token]) for i, token in enumerate(response)]


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2, initializer_range=1.0)).eval()


def test_it_is_the_mean_over_all_tokens_not_over_responses(network: LlamaForCausalLM) -> None:
    nats = [value for prompt, response in PAIRS for value in reference(network, prompt, response)]
    assert len(nats) == 12
    assert response_cross_entropy(network, PAIRS) == pytest.approx(sum(nats) / 12, rel=1e-5)


def test_no_tokens_have_no_mean(network: LlamaForCausalLM) -> None:
    assert math.isnan(response_cross_entropy(network, []))
    assert math.isnan(response_cross_entropy(network, [((1,), ())]))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model of random weights that has the toy world's tokens."""
    torch.manual_seed(1)
    write_blank_model(tmp_path / "model")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_reader_reads_the_samples_of_diversity(directory: Path, tmp_path: Path) -> None:
    """The expected value follows from the response file, and the reader has its own template-free tokens."""
    model = Model("model", [], lambda: str(directory), tmp_path / "out", data={"validation": "toyworld:validation"})
    settings = {"limit": 2, "samples": 2, "max_new_tokens": 6, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    spec = check_spec({"diversity": {**settings, "reader": str(directory)}})
    values = make_measures(model, spec, lambda line: None, draw=False)
    reader, tokenizer = load_model(directory)
    (items,) = (tmp_path / "out").glob("responses/*/items.jsonl")
    asked = {row["item"]: row["text"] for row in map(json.loads, items.read_text().splitlines())}
    lines = [json.loads(line) for file in items.parent.glob("part-*.jsonl") for line in file.open()]
    written = [line for line in lines if "item" in line]  # the first says what they were made with
    nats: dict[str, list[float]] = {}
    for row in written:
        prompt = tokenizer(asked[row["item"]] + "\n\n").input_ids
        response = tokenizer(row["text"], add_special_tokens=False).input_ids
        nats.setdefault(row["item"], []).extend(reference(reader, tuple(prompt), tuple(response)))
    assert len(written) == 4
    of_prompts = {item: statistics.fmean(of_prompt) for item, of_prompt in nats.items()}
    assert values["diversity/reader_cross_entropy"] == pytest.approx(statistics.fmean(of_prompts.values()), rel=1e-5)
    [result] = [read_result(file) for file in (tmp_path / "out" / "measures").glob("*.json")]
    assert result.documents["per_item"]["reader_cross_entropy"] == pytest.approx(of_prompts, rel=1e-5)
    assert result.documents["asked"][""].keys() == of_prompts.keys()


def test_a_reader_that_is_not_there_is_said_before_anything_is_sampled(directory: Path, tmp_path: Path) -> None:
    model = Model("model", [], lambda: str(directory), tmp_path / "out", data={"validation": "toyworld:validation"})
    spec = check_spec({"diversity": {"reader": str(tmp_path / "nowhere")}})
    with pytest.raises(UserError, match=r"^diversity\.reader: .*nowhere"):
        make_measures(model, spec, lambda line: None, draw=False)
    assert not (tmp_path / "out").exists()
