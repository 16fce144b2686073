"""What docs/offline.md says is true: its settings and variables exist, its lines parse, and this is what is said."""

import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import pytest

from tests.e2e.command_line import ROOT, Answer, answer_of, empty_working_directory
from tests.test_readme import small_model
from ts2_lightning.cli import COMMANDS

PAGE = (ROOT / "docs" / "offline.md").read_text(encoding="utf-8")
LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M)
    for line in block.replace("\\\n", " ").splitlines()
]
MISSING = [
    (shlex.split(command), said)
    for command, said in re.findall(r"^\| `ts2 ([^`]+)` \| `([^`]+)` \|$", PAGE, re.MULTILINE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the rows and the model that the page names, and a hub out of reach."""
    directory = tmp_path_factory.mktemp("offline")
    small_model(directory / "MODEL")
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}] * 4
    labels = [{"instruction": "Name a fruit.", "response": "plum" * n, "label": n} for n in (1, 2)]
    for name, lines in (("rows", rows), ("labels", labels)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with empty_working_directory(directory, directory / "cache"), pytest.MonkeyPatch.context() as patch:
        for library in ("huggingface_hub.constants", "datasets.config"):
            patch.setattr(f"{library}.HF_HUB_OFFLINE", True)
        yield directory


def run(capfd: pytest.CaptureFixture[str], words: list[str]) -> Answer:
    return answer_of(capfd, *words)


def test_there_are_lines_and_rows() -> None:
    assert len(MISSING) >= 8
    assert {"fit", "data", "plan", "generate", "evaluate", "judge"} <= {words[0] for words, _ in MISSING}


@pytest.mark.parametrize(("words", "said"), MISSING, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_what_is_said_without_a_network(
    words: list[str], said: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert said in run(capfd, words).complaint


def test_the_commands_parse(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Those that train, with their files; of the others the command and its options are there."""
    ours = [line for line in LINES if line.startswith(("ts2 ", "python cli.py "))]
    commands = [line.removeprefix("ts2 ").removeprefix("python cli.py ").split() for line in ours]
    assert len(commands) >= 4
    for words in commands:
        assert words[0] in COMMANDS
        if words[0] in ("fit", "data"):
            run(capfd, ["fit", *words[1:], "--print_config"]).done()
        else:
            text = run(capfd, [words[0], "--help"]).out
            assert all(word in text for word in words if word.startswith("--"))


def test_the_variables_are_read_by_somebody() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "ts2_lightning").rglob("*.py"))
    source += inspect.getsource(huggingface_hub.constants) + inspect.getsource(datasets.config)
    named = set(re.findall(r"\b((?:HF|TS2)_[A-Z_]+)\b", PAGE))
    assert {"HF_HOME", "HF_HUB_OFFLINE", "TS2_CACHE_DIR"} <= named
    assert [name for name in sorted(named) if f'"{name}"' not in source] == []


def test_the_extras_and_directories_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for extras in re.findall(r"'[\w.-]*\[([\w,-]+)\]'", PAGE) for extra in extras.split(",")}
    assert len(named) >= 4
    assert named <= project["optional-dependencies"].keys()
    assert f"'{project['optional-dependencies']['deepspeed'][0]}'" in PAGE
    assert (ROOT / "constraints.txt").is_file()
