"""Every fragment in `configs/data` makes a datamodule."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_helpers import write_jsonl
from jsonargparse import ArgumentParser

from ts2_lightning.data import SFTData
from ts2_lightning.data.sources import Source

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "data").glob("*.yaml"))


PRESETS = [file for file in FILES if "hub:" in file.read_text()]


def built(values: dict[str, Any]) -> SFTData:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SFTData, "data")
    data = parser.instantiate(parser.parse_object({"data": deepcopy(values)})).data
    assert isinstance(data, SFTData)
    return data


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_fragments_are_arguments_of_the_datamodule(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    sources = built(values).sets.settings
    for split in sources.keys() & values.keys():
        given = values[split]
        if isinstance(given, list):
            given = [Source(**source) if isinstance(source, dict) else source for source in given]
        assert sources[split] == given


USER, ANSWER = {"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "It is 2."}
BINARIZED = [
    {
        "prompt": "1 + 1?", "prompt_id": "x", "chosen": [USER, answer], "rejected": [USER, ANSWER],
        "messages": [USER, answer], "score_chosen": 8.0, "score_rejected": 5.0,
    }
    for answer in (ANSWER, {**ANSWER, "content": "Two."}, {**ANSWER, "content": ""})
]  # fmt: skip
ALPACA = [
    {"instruction": "Add.", "input": given, "output": answer, "text": "Below is an instruction"}
    for given, answer in (("1 and 1", "2"), ("", "Yes"), ("", ""))
]
COMPLETIONS = [
    [{"model": "a", "response": "2", "overall_score": 9.0}, {"model": "b", "response": "3", "overall_score": 2.0}],
    [{"model": "a", "response": "two", "overall_score": 6.5}, {"model": "b", "response": "2", "overall_score": 7.0}],
    [{"model": "a", "response": "5", "overall_score": 4.0}],
]
HUB_ROWS: dict[str, list[dict[str, Any]]] = {  # with the fields that the data sets have
    "ultrafeedback_binarized_ts2": BINARIZED,
    "ultrafeedback_binarized_gem": BINARIZED,
    "ultrafeedback_tofu": [
        {"source": "ultrachat", "instruction": "1 + 1?", "models": ["a", "b"], "completions": completions}
        for completions in COMPLETIONS
    ],
    "alpaca_tofu": ALPACA,
    "alpaca": ALPACA,
    "numina_math": [
        {"source": "cn_k12", "problem": "1 + 1?", "solution": solution, "messages": [USER, ANSWER]}
        for solution in (r"It is \boxed{2}", r"Then \boxed{\frac{4}{2}}", "It is 2.")
    ],
}


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_presets_take_rows_as_they_are_on_the_hub(file: Path, tmp_path: Path, tokenizer_directory: str) -> None:
    """Its format, template, length and policy, on rows of the data set's shape; one in three cannot be trained on."""
    values = yaml.safe_load(file.read_text())
    for split in ("train", "validation"):
        for source in values[split] if isinstance(values[split], list) else []:
            assert re.fullmatch("hub:[^/]+/[^/]+", source["path"])
            assert re.fullmatch("[0-9a-f]{40}", source["revision"]), "only a commit will always be the same rows"
    local = {
        "train": [{"path": write_jsonl(tmp_path / "rows.jsonl", HUB_ROWS[file.stem])}],
        "validation": None,
        "tokenizer": tokenizer_directory,
        "template": "chatml" if values.get("template") == "tokenizer" else values.get("template", "auto"),
        "max_rejects": 0.34,
    }
    if "sample" in values["train"][0]:
        local["train"][0]["sample"] = 1
    data = built(values | local)
    data.setup("fit")
    counts = data.describe()["splits"]["train"]
    assert counts["kept"] == (1 if "sample" in values["train"][0] else 2)
    assert sum(counts["rejected"].values()) == 1
    assert counts["longest"] <= data.row_length
    detected = built(values | local | {"format": "auto"})
    detected.setup("fit")
    assert detected.describe()["splits"]["train"]["rejected"] == counts["rejected"]


def test_the_papers_presets() -> None:
    ts2, gem = (yaml.safe_load(file.read_text()) for file in sorted(PRESETS, reverse=True) if "binarized" in file.name)
    assert (ts2["max_length"], ts2["overlong"], gem["max_length"], gem["overlong"]) == (2048, "truncate", 2048, "drop")
    assert {**ts2, "overlong": "drop"} == gem


def test_defaults_are_the_papers_settings() -> None:
    data = SFTData()
    assert (data.batch_size, data.micro_batch_size, data.row_length, data.overlong) == (128, 8, 2048, "truncate")
