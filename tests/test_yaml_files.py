"""YAML that may come from elsewhere: what is no value is told in one line."""

from pathlib import Path

import pytest

from ts2_lightning.studies.grid.entries import read_entries
from ts2_lightning.types import UserError
from ts2_lightning.yaml_files import load_yaml

NO_VALUES = {
    "2024-13-45": "'2024-13-45' is no timestamp",
    "2024-01-01T25:00:00Z": "'2024-01-01T25:00:00Z' is no timestamp",
    "!!timestamp noon": "'noon' is no timestamp",
    "!!int abc": "'abc' is no int",
    "!!float ''": "'' is no float",
    "!!bool maybe": "'maybe' is no bool",
    "9" * 5000: f"'{'9' * 40}' is no int",
}


@pytest.mark.parametrize("value", NO_VALUES)
def test_a_scalar_that_is_no_value_is_told_with_its_line(value: str, tmp_path: Path) -> None:
    what = f"{NO_VALUES[value]}; put it in quotes if it is a text"
    with pytest.raises(UserError) as refused:
        load_yaml(f"a: 1\nb: [{value}]\n", "a.yaml")
    assert str(refused.value) == f"a.yaml:2: not valid YAML: {what}"
    (file := tmp_path / "grid.yaml").write_text(f"a: 1\nb: [{value}]\n")
    with pytest.raises(UserError) as refused:
        read_entries(file)
    assert str(refused.value) == f"{file}:2: b #1: not plain YAML: {what}"
