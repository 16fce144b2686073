"""The kernels as machine code: no GPU is needed to see registers, spills, exchanges between threads and barriers."""

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need Triton, which this platform lacks")

from tests.kernels.cases import REQUESTS
from tests.kernels.compiled import Code, gradient, summary
from ts2_lightning.ops.row_kernels import layout_for
from ts2_lightning.ops.row_programs import gradient_program, summary_program

WIDTHS = (32_000, 128_256, 151_936, 262_144)
ARCHITECTURES = (80, 90, 120)

FAST = [(128_256, 90)]
SLOW = [(width, architecture) for architecture in ARCHITECTURES for width in WIDTHS]
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW if case not in FAST)]
"""Widths and architectures. Code is the same for widths of one layout, of which all or none are multiples of 16."""

LARGEST = ("two_scales", "scaled_entmax")
"""What holds most in registers: one of each way to the support, with all sums."""


def mark_of(width: int, architecture: int, name: str) -> list[pytest.MarkDecorator]:
    """Beside an H100 CI has each request at one width, and at all others those that need most registers."""
    if (width, architecture) in FAST and name == "two_scales":
        return []
    in_ci = architecture == 90 or width == 128_256 or name in LARGEST
    return [pytest.mark.slow if in_ci else pytest.mark.long]


SUMMARIES = [pytest.param(*case, name, marks=mark_of(*case, name)) for case in SLOW for name in REQUESTS]


@pytest.fixture(autouse=True)
def compile_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled code is taken from the user's cache, or left there."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def check_summary(code: Code, vectorised: bool = True) -> None:
    assert code.spills == 0
    assert code.registers <= 128  # two programs of 256 threads at a time
    kinds = code.kinds()
    assert kinds["MUFU"] >= code.elements  # it is the loop over the row
    assert kinds["SHFL"] == kinds["BAR"] == kinds["LDS"] == kinds["STS"] == kinds["STG"] == 0
    assert kinds["LDG"] == code.elements // (4 if vectorised else 1)
    assert "max.NaN.f32" in code.ptx  # by default a maximum hides a NaN


@pytest.mark.parametrize(("width", "architecture", "name"), SUMMARIES)
def test_summary(width: int, architecture: int, name: str) -> None:
    check_summary(summary(width, REQUESTS[name], architecture))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 50_257, 128_257])
def test_summary_of_odd_widths(width: int) -> None:
    """Rows that do not begin at multiples of 16 bytes; and a width of 1, which a launch makes a constant."""
    code = summary(width, REQUESTS["scaled_entmax"], 90)
    if width == 1:
        assert (code.spills, code.registers <= 128) == (0, True)
    else:
        check_summary(code, vectorised=False)


@pytest.mark.parametrize(("width", "architecture"), CASES)
def test_gradient_in_place(width: int, architecture: int) -> None:
    """bfloat16 in memory of the float32 logits: all threads have read a tile before any of them writes it."""
    code = gradient(width, "bf16", architecture, OVERLAP=True)
    check_gradient(code)
    order = [name for line in code.hot_loop if (name := line.split(".")[0].split()[0]) in ("LDG", "BAR", "STG")]
    reads, writes = code.elements // 4, code.elements // 8
    assert order == [*["LDG"] * reads, "BAR", *["STG"] * writes]
    # Read before the first barrier, and written after the last, is the gold token's entry.
    barriers = [place for place, line in enumerate(code.instructions) if line.startswith("BAR")]
    stores = [place for place, line in enumerate(code.instructions) if line.startswith("STG")]
    assert len(barriers) == 3
    assert min(stores) > barriers[1]
    assert sum(place > barriers[2] for place in stores) == 1


def check_gradient(code: Code) -> None:
    assert code.spills == 0
    assert code.registers <= 64
    assert code.kinds()["SHFL"] == 0
    assert not any("CONSTANT" in line for line in code.instructions)  # nothing is read as if it never changed


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("full", [False, True])
def test_gradient_elsewhere(dtype: str, full: bool, architecture: int) -> None:
    flags = {"Q": 2, "SLOPE": True, "UNIFORM": True} if full else {"SUPPORT": False}
    code = gradient(128_256, dtype, architecture, **flags)
    check_gradient(code)
    assert code.kinds()["BAR"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 50_257])
def test_gradient_of_odd_widths(width: int) -> None:
    check_gradient(gradient(width, "bf16", 90, OVERLAP=True))


@pytest.mark.parametrize("program", [summary_program, gradient_program])
def test_a_number_of_rows_compiles_nothing(program: object) -> None:
    assert [parameter.name for parameter in program.params if parameter.do_not_specialize] == ["n"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [1, 2, 428, 8_192, 50_257, 65_536, 65_537, *WIDTHS, 1_000_003])
def test_layouts(width: int) -> None:
    layout = layout_for(width)
    assert all(size & (size - 1) == 0 for size in layout)
    assert layout.depth * layout.lanes >= width
    assert layout.lanes == layout.warps * 128
    assert layout.held_lanes * layout.depth <= 512 * layout.warps or layout.held_lanes == 1
