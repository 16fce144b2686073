"""The first twenty steps are what they were when `tests/golden` was written."""

import json

import pytest

from tests.e2e import golden
from tests.e2e.command_line import CommandLine


@pytest.mark.parametrize("name", golden.RUNS)
def test_golden_losses(name: str, ts2: CommandLine) -> None:
    stored = json.loads((golden.GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert stored["options"] == [*golden.OPTIONS, *golden.RUNS[name]], f"write them anew: {golden.COMMAND}"
    found = golden.run(ts2.blank, golden.RUNS[name], name)
    assert found.keys() == stored["steps"].keys()
    for metric, wanted in stored["steps"].items():
        assert len(wanted) == 20
        assert found[metric] == pytest.approx(wanted, rel=1e-4), metric
