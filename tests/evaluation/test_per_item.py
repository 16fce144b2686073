"""What `validation` and `diversity` say of single rows and prompts, and models compared on them."""

import csv
import json
import re
import shlex
import statistics
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ts2_lightning.cli import main
from ts2_lightning.cli.asked_models import evaluated_place
from ts2_lightning.evaluation import Model, check_spec, make_measures
from ts2_lightning.evaluation.loading import load_model
from ts2_lightning.evaluation.results import Result, read_result
from ts2_lightning.metrics import functional as f
from ts2_lightning.toyworld.base import write_blank_model

SAMPLED = {"limit": 3, "samples": 2, "max_new_tokens": 6, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
ROWS = {"few": [([5, 6, 7], [1, 2]), ([8, 9], [1]), ([5, 6, 7], [2])], "more": [([5, 6, 7, 8, 9], [2, 3, 4])]}
"""Tokens of each row of two sets, and which of them are supervised; the third one of a set is in its second batch."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of random weights that have the toy world's tokens."""
    out = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        write_blank_model(out / name)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out / name)).save_pretrained(out / name)
    return out


def results(directory: Path, out: Path, spec: dict[str, object], data: dict[str, object]) -> dict[str, Result]:
    """What is measured of the model that is called as its output directory, by the measure."""
    model = Model(out.name, [], lambda: str(directory / out.name), out, data=data)
    make_measures(model, check_spec(spec), lambda line: None, draw=False)
    return {result.name: result for result in map(read_result, (out / "measures").glob("*.json"))}


def prompts(*things: str) -> str:
    """The path of a file of prompts, one for each thing to name."""
    rows = [{"messages": [{"role": "user", "content": f"name a {thing}"}]} for thing in things]
    file = Path(f"{'-'.join(things)}.jsonl").absolute()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_rows_have_the_means_of_their_tokens(directory: Path, tmp_path: Path) -> None:
    """By the model's own logits, in float64; sets are parts, and the whole is over tokens, not over rows."""
    data: dict[str, object] = {"validation": {}, "eval_batch_size": 2}
    for name, rows in ROWS.items():
        plain = [
            {"input_ids": ids, "labels": [token if place in supervised else -100 for place, token in enumerate(ids)]}
            for ids, supervised in rows
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
        data["validation"][name] = str(tmp_path / f"{name}.jsonl")  # type: ignore[index]
    result = results(directory, tmp_path / "one", {"validation": {}}, data)["validation"]
    network, _ = load_model(directory / "one")
    every = []
    for name, rows in ROWS.items():
        for number, (ids, supervised) in enumerate(rows):
            with torch.no_grad():
                logits = network(torch.tensor([ids])).logits[0].double()[[place - 1 for place in supervised]]
            labels = torch.tensor([ids[place] for place in supervised])
            nats = torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
            every += nats
            per_item = result.documents["per_item"]
            assert per_item[f"{name}/cross_entropy"][str(number)] == pytest.approx(statistics.fmean(nats), rel=1e-5)
            for value in ("entropy", "support_size", "tail_mass"):
                of_tokens = f.token_statistics(logits, labels)[value].double()
                assert per_item[f"{name}/{value}"][str(number)] == pytest.approx(float(of_tokens.mean()), rel=1e-4)
    assert result.values["validation/cross_entropy"] == pytest.approx(statistics.fmean(every), rel=1e-5)
    asked = result.documents["asked"]
    assert {name: [*of_set] for name, of_set in asked.items()} == {"few": ["0", "1", "2"], "more": ["0"]}
    assert len({digits for of_set in asked.values() for digits in of_set.values()}) == 4, "what is supervised counts"


def test_models_are_compared_on_prompts_and_rows(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(directory)
    data: dict[str, object] = {"validation": "toyworld:validation"}
    spec = {"diversity": {**SAMPLED, "prompts": prompts("fruit", "city", "name")}, "validation": {"limit": 4}}
    made = {name: results(directory, directory / "measured" / name, spec, data) for name in ("one", "other")}
    for of_model in made.values():
        per_item, values = of_model["diversity"].documents["per_item"], of_model["diversity"].values
        for value, of_prompts in per_item.items():
            assert values[f"diversity/{value}"] == pytest.approx(statistics.fmean(of_prompts.values()))
            assert len(of_prompts) == 3
    cities = {"diversity": {**SAMPLED, "prompts": prompts("city")}}
    of_cities = results(directory, directory / "elsewhere" / "one", cities, data)["diversity"]
    asked = made["one"]["diversity"].documents["asked"][""]
    assert of_cities.documents["asked"][""] == {"0": asked["1"]}, "prompts are told apart by what they ask"
    assert len({*asked.values()}) == 3
    capsys.readouterr()
    assert main(["compare", "measured/one", "measured/other", "--values", "all"]) == 0
    shown = capsys.readouterr().out
    assert "no texts" not in shown
    with open("comparison/table.csv") as stream:
        rows = {(row["protocol"], row["value"]): row for row in csv.DictReader(stream)}
    for measure, value, count in (("diversity", "self_bleu_diversity", 3), ("validation", "entropy", 4)):
        one, other = (made[name][measure].documents["per_item"][value] for name in ("one", "other"))
        difference = statistics.fmean(other[id] - one[id] for id in one)
        assert float(rows[measure, value]["difference"]) == pytest.approx(difference, abs=1e-6)
        assert rows[measure, value]["questions"] == str(count)


def test_the_command_that_is_missing_measures(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it makes is compared with what is there."""
    monkeypatch.chdir(directory)
    rows = directory / "rows.jsonl"
    rows.write_text(json.dumps({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}) + "\n")
    measure = json.dumps({"validation": {"rows": str(rows), "logit_scale": 2.0}})
    place = evaluated_place("one", Path("evaluation"))[1]
    assert main(["measure", "one", "--spec", measure, "--out", str(place)]) == 0
    capsys.readouterr()
    assert main(["compare", "one", "other", "--protocol", "validation"]) == 2
    said = capsys.readouterr().out
    [command] = re.findall(r"^other was not measured under validation: \w+(?: cli.py)? (measure .*)$", said, re.M)
    assert main(shlex.split(command)) == 0
    capsys.readouterr()
    assert main(["compare", "one", "other", "--protocol", "validation"]) == 0
    assert main(["compare", "one", "other", "--protocol", "diversity"]) == 2
    assert "measure one other --spec '{\"diversity\": {}}'" in capsys.readouterr().out
