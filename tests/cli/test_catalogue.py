"""`losses`: every objective is found, with formula, paper and defaults; one in full; a wrong name takes one line."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Run
from ts2_lightning.cli.catalogue import catalogue, describe, find, loss_classes, overview, read_entry
from ts2_lightning.losses import LossResult, TokenLoss
from ts2_lightning.ops import LogitRows
from ts2_lightning.types import UserError

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(loss_classes())

OWN = '''
from ts2_lightning.losses import TokenLoss, ValueLoss


class Focal(ValueLoss):
    """Cross-entropy that cares less for what is learnt.

    Args:
        gamma: of the factor.
        half: whether to halve it.
    """

    def __init__(self, gamma, half: bool = False) -> None:
        self.gamma = gamma

    def value(self, logits, labels):
        return -logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0] * self.gamma


class Bare(Focal):
    pass


NUMBER = 3
'''


def test_every_objective_of_the_package_is_found() -> None:
    """Also one that somebody wrote and forgot to export."""

    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(child) for child in cls.__subclasses__()))

    ours = {cls for cls in below(TokenLoss) if cls.__module__.startswith("ts2_lightning.losses.")}
    assert set(NAMES) == {c.__name__ for c in ours if not inspect.isabstract(c) and "<locals>" not in c.__qualname__}
    assert {"CrossEntropyLoss", "GEMLoss", "TOFULoss", "TS2Loss"} <= set(NAMES)
    assert not {"TokenLoss", "ValueLoss", "FenchelYoungLoss"} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_of_ours_has_formula_gradient_paper_and_described_arguments(name: str) -> None:
    entry = find(name)
    assert entry.formula is not None, f"{name}: no paragraph that begins with 'L = ' in its docstring"
    assert entry.formula.startswith("L = ")
    assert "dL/dz" not in entry.formula
    assert entry.gradient is not None, f"{name}: no paragraph that begins with 'dL/dz' in its docstring"
    assert entry.source, f"{name}: no paragraph that begins with 'Source: ' in its docstring"
    for argument in entry.arguments:
        assert argument.description, f"{name}: {argument.name} is not described under Args:"
    loss_classes()[name](**{argument.name: argument.default for argument in entry.arguments})


def test_known_entries() -> None:
    gem = find("GEMLoss")
    assert [(a.name, a.shown) for a in gem.arguments] == [("beta", "0.7"), ("h", "linear")]
    assert "TOFU" in str(gem.source)
    ts2 = find("TS2Loss")
    shown = {a.name: a.shown for a in ts2.arguments}
    assert shown == {
        "alpha": "0.25", "logit_scale": "1.0", "top_k": "null", "adaptive": "false", "tail_mass_cap": "null"
    }  # fmt: skip
    assert find("CrossEntropyLoss").arguments == ()
    assert find("ts2_lightning.losses.TS2Loss").formula == ts2.formula


class Written(TokenLoss):
    """A summary.

    L = a long formula, which goes on
    on a second line
        and on a third,
    dL/dz = its gradient,
    also on two.

    Text that mentions L = nothing and a Source: that is none.

    Source: A paper,
    with a second line. And a sentence.

    Args:
        first (float): on one line.
        second: on two
            lines: with a colon.

    Raises:
        ValueError: never.
    """

    def __init__(self, first: float, second: int | None = None) -> None: ...

    def evaluate(self, rows: LogitRows) -> LossResult:
        raise NotImplementedError


def test_a_docstring_is_read() -> None:
    entry = read_entry(Written, "Written")
    assert entry.formula == "L = a long formula, which goes on on a second line and on a third"
    assert entry.gradient == "dL/dz = its gradient, also on two"
    assert entry.source == "A paper, with a second line. And a sentence"
    assert [(a.name, a.shown, a.description) for a in entry.arguments] == [
        ("first", "required", "on one line."),
        ("second", "null", "on two lines: with a colon."),
    ]
    assert "Args" not in entry.text
    assert "never" not in entry.text


def test_a_formula_and_its_gradient_may_share_a_line() -> None:
    class OneLine(Written):
        """L = a (b, c), dL/dz = d."""

    entry = read_entry(OneLine, "OneLine")
    assert (entry.formula, entry.gradient) == ("L = a (b, c)", "dL/dz = d")
    assert entry.source is None


def test_the_list_has_every_entry_whole(ts2: Run) -> None:
    answer = ts2("losses").done()
    assert answer.err == ""
    assert "\x1b" not in answer.out
    flat = " ".join(answer.out.split())
    for entry in catalogue():
        assert re.search(rf"^{entry.name}\b", answer.out, re.M)
        for text in (entry.formula, entry.source):
            assert " ".join(str(text).split()) in flat, f"{entry.name} is cut short"
        for argument in entry.arguments:
            assert f"{argument.name}={argument.shown}" in flat


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    texts = [overview(catalogue(), width), *(describe(find(name), width) for name in NAMES)]
    for line in "\n".join(texts).splitlines():
        assert len(line) <= width or len(line.split()) == 1, line


@pytest.mark.parametrize("name", NAMES)
def test_one_in_full(ts2: Run, name: str) -> None:
    answer = ts2("losses", name).done()
    entry, flat = find(name), " ".join(answer.out.split())
    for text in (entry.formula, entry.gradient, entry.source, *(a.description for a in entry.arguments)):
        assert str(text) in flat
    assert "Example:" not in answer.out
    assert ">>>" not in answer.out


@pytest.mark.parametrize("name", NAMES)
def test_its_command_selects_it_with_its_defaults(name: str, real: Run) -> None:
    """The command that is shown, as a shell would read it, parsed by the real command line."""
    shown = describe(find(name), 80).split("Select it with:\n")[1]
    words = shlex.split(shown.replace("\\\n", ""))
    assert words[:2] == ["ts2", "fit"]
    config = words.index("-c") + 1
    words[config] = str(ROOT / words[config])
    loss: dict[str, Any] = yaml.safe_load(real(*words[1:], "--print_config").done().out)["model"]["loss"]
    assert loss["class_path"].endswith(f".{name}")
    defaults = {a.name: a.default for a in find(name).arguments}
    assert (loss.get("init_args") or {}) == defaults


def test_json(ts2: Run) -> None:
    answer = ts2("losses", "--json")
    rows = json.loads(answer.out)
    assert [row["name"] for row in rows] == NAMES
    row = next(row for row in rows if row["name"] == "TOFULoss")
    assert {a["name"]: a["default"] for a in row["arguments"]} == {"gamma": 3.0, "beta": 0.8}
    assert row["formula"] == find("TOFULoss").formula
    assert json.loads(ts2("losses", "TOFULoss", "--json").out) == [row]


def test_a_loss_of_the_user(ts2: Run, here: Path) -> None:
    (here / "my_catalogued_losses.py").write_text(OWN)
    answer = ts2("losses", "my_catalogued_losses.Focal").done()
    assert "Cross-entropy that cares less for what is learnt." in answer.out
    assert "of the factor." in answer.out
    assert "--model.loss my_catalogued_losses.Focal" in " ".join(answer.out.split())
    assert "half = false" in answer.out
    (entry,) = json.loads(ts2("losses", "my_catalogued_losses.Focal", "--json").out)
    assert entry["formula"] is None
    assert [("default" in a) for a in entry["arguments"]] == [False, True]
    bare = ts2("losses", "my_catalogued_losses.Bare").done()
    assert "learnt" not in bare.out, "a parent's words are not the class's own"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("losses TS2Los", "losses: no loss named 'TS2Los'; did you mean TS2Loss?"),
        ("losses ts2", "losses: no loss named 'ts2'; did you mean TS2Loss?"),
        ("losses gemloss", "losses: no loss named 'gemloss'; did you mean GEMLoss?"),
        ("losses nothing_like_it", "losses: no loss named 'nothing_like_it'; without a name, all are listed"),
        ("losses nowhere.Focal", "losses: cannot import nowhere.Focal: No module named 'nowhere'"),
        ("losses ts2_lightning.losses.GemLoss", "losses: cannot import ts2_lightning.losses.GemLoss: module"),
        ("losses torch.nn.Linear", "losses: torch.nn.Linear is not a TokenLoss"),
        ("losses math.pi", "losses: math.pi is not a TokenLoss"),
        ("losses .Focal", "losses: cannot import .Focal: "),
        ("losses TS2Loss GEMLoss", "losses: unexpected argument 'GEMLoss'"),
        ("losses --jsn", "losses: --jsn: no such option; did you mean --json?"),
    ],
)
def test_a_mistake_takes_one_line(ts2: Run, words: str, expected: str) -> None:
    assert ts2(*words.split()).refusal.startswith(expected)


def test_a_broken_module_of_the_user_keeps_its_traceback(ts2: Run, here: Path) -> None:
    (here / "my_broken_losses.py").write_text("1 / 0\n")
    answer = ts2("losses", "my_broken_losses.Focal")
    assert answer.status == 1
    line = answer.err.strip()
    assert line.startswith("error: losses: ZeroDivisionError: division by zero; the traceback is in ")
    file = Path(line.split("the traceback is in ")[1].partition(";")[0])
    assert "my_broken_losses.py" in file.read_text()
    file.unlink()


def test_find_raises_what_the_command_says() -> None:
    with pytest.raises(UserError, match="did you mean FocalLoss"):
        find("Focal")


def test_it_loads_neither_models_nor_trainers() -> None:
    """It answers in about the time that importing torch takes."""
    script = (
        "import sys; from ts2_lightning.cli import main; status = main(['losses']); "
        "heavy = {'lightning', 'transformers', 'jsonargparse', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_seen_enough(options: list[str]) -> None:
    """As in `losses | head -1`."""
    command = [sys.executable, "-m", "ts2_lightning.cli", "losses", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
