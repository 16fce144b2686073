"""Mathematical answers: boxes, tolerances, and comparisons that may hang, crash or never be asked twice."""

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts2_lightning.evaluation.answers import mathematics
from ts2_lightning.evaluation.answers.mathematics import MathVerifier, Verdict, equal_within, last_boxed
from ts2_lightning.types import UserError


@pytest.mark.parametrize(
    ("response", "inside"),
    [
        ("The answer is $\\boxed{42}$.", "42"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\left\\{ x : x > 0 \\right\\}}", "\\left\\{ x : x > 0 \\right\\}"),  # braces that are text
        ("First $\\boxed{1}$, then $\\boxed{2}$.", "2"),
        ("$\\boxed{1}$ or \\boxed{2, cut off", "1"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed {\\sqrt{2}}", "\\sqrt{2}"),
        ("\\fbox{3}", "3"),
        ("\\boxed 5$", "5"),
        ("\\\\boxed{6}", "6"),  # escaped once too often
        ("A set {1, 2 that is never closed; \\boxed{8}", "8"),
        ("stray } braces } \\boxed{9} }", "9"),
        ("\\boxed{}", ""),
        ("\\boxed{ x = 5 }", "x = 5"),
        (
            "\\boxed{\n\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}\n}",
            "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
        ),
        ("The answer is 42.", None),
        ("boxed{42}", None),
        ("\\boxed{42", None),
        ("", None),
    ],
)
def test_the_last_box(response: str, inside: str | None) -> None:
    assert last_boxed(response) == inside


nested = st.recursive(
    st.text(alphabet="ax1+ ", max_size=5),
    lambda inner: st.lists(st.one_of(inner, inner.map(lambda text: f"{{{text}}}")), max_size=4).map("".join),
    max_leaves=20,
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(nested, nested, st.text(alphabet="a{ 1", max_size=10), st.text(alphabet="a} 1", max_size=10))
def test_balanced_braces_are_kept_whatever_stands_around(inside: str, other: str, before: str, behind: str) -> None:
    assert last_boxed(f"{before}\\boxed{{{other}}} and \\boxed{{{inside}}}{behind}") == inside.strip()


@pytest.mark.parametrize("filler", ["\\boxed{", "{", "}", "\\", "\\boxed ", "\\boxed{1}", "\\boxed{\\", " "])
def test_a_megabyte_is_read(filler: str) -> None:
    text = filler * (1_000_000 // len(filler))
    last_boxed(text)
    assert last_boxed(f"{text} \\boxed{{42}}") == "42"


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("4.5e33", "4.46 \\times 10^{33}", True),
        ("4.5e33", "4.4 \\times 10^{33}", False),
        ("4.5e33", "4.5 \\times 10^{32}", False),
        ("0.1", "1/10 \\text{ m}", True),
        ("-3", "-3.02", True),
        ("-3", "3", False),
        ("0", "0.001", False),  # a share of nothing is nothing
        ("0", "0.0", True),
        ("x^2", "1", False),
        ("1", "", False),
    ],
)
def test_answers_of_physics_are_equal_within_a_hundredth(gold: str, answer: str, equal: bool) -> None:
    assert equal_within(gold, answer) is equal


def test_a_tolerance_is_checked() -> None:
    with pytest.raises(UserError, match="tolerance must be a finite number of at least 0, got -1"):
        equal_within("1", "1", tolerance=-1)
    assert not equal_within("1", "1.001", tolerance=0)


# The workers ----------------------------------------------------------------------------------------------------

STAND_IN = """
import json, os, sys, time
print('"ready"', flush=True)
for line in sys.stdin:
    gold, answer = json.loads(line)
    with open(os.environ["ASKED"], "a") as file:
        file.write(line)
    if answer == "hang":
        time.sleep(600)
    if answer == "crash":
        os._exit(3)
    print(json.dumps([gold.lower() == answer.lower(), ""]), flush=True)
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pairs that a stand-in for the worker was asked, which hangs and crashes when it is told to."""
    worker = tmp_path / "worker.py"
    worker.write_text(STAND_IN)
    monkeypatch.setattr(mathematics, "_WORKER", worker)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    (tmp_path / "asked").touch()
    return tmp_path / "asked"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_that_hangs_or_dies_stops_nobody(asked: Path, workers: int) -> None:
    pairs = [("A", "a"), ("A", "hang"), ("B", "b"), ("A", "crash"), ("C", "d"), ("D", "hang"), ("E", "e")]
    with MathVerifier(workers, seconds=0.7) as verifier:
        started = time.monotonic()
        verdicts = verifier.verify(pairs)
        assert time.monotonic() - started < 60
        processes = [worker._process for worker in verifier._workers]
    assert [verdict.equal for verdict in verdicts] == [True, False, True, False, False, False, True]
    assert verdicts[1] == verdicts[5] == Verdict(False, "no verdict in 0.7 s")
    assert verdicts[3].note == "the comparison has crashed"
    assert verdicts[4] == Verdict(False)
    assert len(processes) <= workers
    assert all(process.poll() is not None for process in processes)  # nothing is left behind


def test_every_pair_is_asked_once(asked: Path) -> None:
    with MathVerifier() as verifier:
        first = verifier.verify([("A", "a"), ("A", "a"), ("B", "a")])
        assert verifier.verify([("B", "a"), ("A", "a")]) == [first[2], first[0]]
        assert verifier.verify([]) == []
    assert asked.read_text().splitlines() == ['["A", "a"]', '["B", "a"]']


def test_what_needs_no_worker_gets_none(asked: Path) -> None:
    with MathVerifier() as verifier:
        verdicts = verifier.verify([("x", " x "), ("x", ""), ("52_8", "52_3"), ("1", "9" * 2_001)])
    assert verdicts == [
        Verdict(True),
        Verdict(False, "empty"),
        Verdict(False),
        Verdict(False, "longer than 2,000 characters"),
    ]
    assert asked.read_text() == ""


def test_a_worker_that_does_not_start_is_one_line(asked: Path, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("import no_such_module")
    with MathVerifier() as verifier, pytest.raises(UserError, match=r"^math-verify does not start: look at .*python"):
        verifier.verify([("A", "b")])


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^math-verify is not installed: pip install 'ts2-lightning\[math\]'$"):
        MathVerifier()


EQUAL = [
    ("\\frac{1}{2}", "0.5"),
    ("\\frac12", "\\dfrac{1}{2}"),
    ("10\\%", "10"),
    ("90^\\circ", "90"),
    ("\\text{Evelyn}", "Evelyn"),
    ("5", "x = 5"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"),
    ("\\{1, 2\\}", "\\{2, 1\\}"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("2\\sqrt{2}", "\\sqrt{8}"),
    ("1,000", "1000"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "$\\displaystyle {\\left( 3, \\frac{\\pi}{2} \\right)}$."),
    ("7", "\\(7\\)"),
    ("10,\\!080", "10080"),
    ("1000", "1\\,000"),
    ("\\text{June 20}", "June 20"),
    ("\\text{(E)}", "E"),
    ("\\text{even}", "\\text{Even}"),
    ("11,\\! 111,\\! 111,\\! 100", "11{,}111{,}111{,}100"),
    ("\\frac{270}7\\text{ degrees}", "\\frac{270}{7}\\,"),
    ("864 \\mbox{ inches}^2", "864 \\text{ square inches}"),
]
DIFFERENT = [
    ("\\frac{1}{2}", "0.51"),
    ("(1, 2)", "(2, 1)"),
    ("[1, 2)", "[1, 2]"),
    ("x^2", "x^3"),
    ("\\text{Evelyn}", "Alice"),
    ("52_8", "52_3"),
    ("3", "I do not know"),
    ("3", "{{{{{{"),
    ("3", "\\frac{" * 200),
]


def test_math_verify_compares() -> None:
    pytest.importorskip("math_verify")
    with MathVerifier(seconds=30) as verifier:
        verdicts = verifier.verify([*EQUAL, *DIFFERENT])
    pairs = [*EQUAL, *DIFFERENT]
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.equal] == EQUAL


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["9^{9^{9^{9^9}}}", "10000000!", "\\sum_{i=1}^{10000000} i^{i}"])
def test_no_answer_takes_for_ever(answer: str) -> None:
    pytest.importorskip("math_verify")
    with MathVerifier(seconds=3) as verifier:
        assert [verdict.equal for verdict in verifier.verify([("3", answer), ("\\frac12", "0.5")])] == [False, True]


@pytest.mark.slow
def test_reference_solutions_of_math500_equal_their_answers(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    with gzip.open(shared_data / "eval" / "math500.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    boxes = [last_boxed(row["solution"]) for row in rows]
    assert boxes == [row["answer"] for row in rows]
    golds = [row["answer"] for row in rows[::5]]  # all 500 take a minute
    same, others = [(gold, gold) for gold in golds], list(zip(golds, [*golds[1:], golds[0]], strict=True))
    monkeypatch.setattr(
        MathVerifier, "_is_decided", lambda self, pair: pair in self._verdicts
    )  # compare equal texts too
    with MathVerifier(seconds=30) as verifier:
        assert [pair for pair, verdict in zip(same, verifier.verify(same), strict=True) if not verdict.equal] == []
        accepted = [pair for pair, verdict in zip(others, verifier.verify(others), strict=True) if verdict.equal]
    assert [pair for pair in accepted if pair[0] != pair[1]] == []
