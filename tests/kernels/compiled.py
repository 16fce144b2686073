"""The kernels compiled for a GPU that need not be there, and what the machine code says of them."""

import re
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ts2_lightning.ops.row_kernels import COMPILED, layout_for
from ts2_lightning.ops.row_programs import gradient_program, summary_program
from ts2_lightning.ops.summary import SummaryRequest

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {"logits": "*fp32", "labels": "*i64", "fields": "*fp32", "lists": "*i32", "coefficients": "*fp32"}
NUMBERS = {"stride": "i32", "out_stride": "i32", "n": "i32", "K": "i32"}
NUMBERS |= {"scale": "fp32", "support_scale": "fp32", "factor": "fp32"}


class Code(NamedTuple):
    """A compiled kernel.

    Attributes:
        ptx: the code before it is assembled.
        instructions: all of the machine code, in its order, without what they are predicated on.
        hot_loop: those of the innermost loop with most exponentials.
        elements: number of logits for which a thread runs that loop once.
        registers: registers of a thread.
        spills: instructions that write or read what registers had no room for.
    """

    ptx: str
    instructions: list[str]
    hot_loop: list[str]
    elements: int
    registers: int
    spills: int

    def kinds(self) -> Counter[str]:
        """How often the hot loop has each instruction, by its name up to the first dot."""
        return Counter(re.split(r"[. ]", instruction)[0] for instruction in self.hot_loop)


def summary(width: int, request: SummaryRequest, architecture: int) -> Code:
    """`summarize` for rows of a width."""
    layout = layout_for(width, request)
    constants = {
        "LANES": layout.lanes,
        "STRIP": layout.strip,
        "HELD": layout.held_lanes,
        "DEPTH": layout.depth,
        "Q": 1 if request.alpha == 2 else 2,
        "SUPPORT": request.support_scale is not None,
        "SCALED": request.softmax_scale != 1,
        "UNIFORM": request.uniform,
    }
    elements = layout.strip * layout.lanes // (32 * layout.warps)
    return _compiled(summary_program, {}, constants, width, layout.warps, elements, architecture)


def gradient(width: int, dtype: str, architecture: int, **flags: object) -> Code:
    """`write_gradient` for rows of a width; the flags are the program's."""
    layout = layout_for(width)
    constants = {"TILE": layout.tile, "Q": 1, "SUPPORT": True, "SLOPE": False, "UNIFORM": False, "OVERLAP": False}
    elements = layout.tile // (32 * layout.warps)
    types = {"out": f"*{dtype}"}
    return _compiled(gradient_program, types, constants | flags, width, layout.warps, elements, architecture)


def _compiled(
    program: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    width: int,
    warps: int,
    elements: int,
    architecture: int,
) -> Code:
    types = {**POINTERS, **NUMBERS, **types}
    if width == 1:  # as at a launch: an argument of 1 is a constant
        constants = constants | {name: 1 for name in ("K", "stride", "out_stride") if name in program.arg_names}
    signature = {name: "constexpr" if name in constants else types[name] for name in program.arg_names}
    aligned = tuple(
        place
        for place, (name, kind) in enumerate(signature.items())
        if kind[0] == "*" or (kind == "i32" and name != "n" and width % 16 == 0)
    )
    return _code(program, (*signature.items(),), (*constants.items(),), aligned, warps, elements, architecture)


@cache
def _code(
    program: Any,
    signature: tuple[tuple[str, str], ...],
    constants: tuple[tuple[str, Any], ...],
    aligned: tuple[int, ...],
    warps: int,
    elements: int,
    architecture: int,
) -> Code:
    """The code of one specialization, compiled once: a launch too compiles no more for widths that share it."""
    source = ASTSource(
        fn=program,
        signature=dict(signature),
        constexprs={(program.arg_names.index(name),): value for name, value in constants},
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source, target=target, options={"num_warps": warps, **COMPILED})
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "kernel.cubin")
        file.write_bytes(kernel.asm["cubin"])
        usage, listing = _run("cuobjdump", "-res-usage", file), _run("nvdisasm", "-c", file)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers, usage
    spills = len(re.findall(r"\b(?:STL|LDL)\b", listing))
    instructions, loops = _parsed(listing)
    hot_loop = max(loops, key=lambda loop: sum(line.startswith("MUFU.EX2") for line in loop))
    return Code(kernel.asm["ptx"], instructions, hot_loop, elements, int(registers[1]), spills)


def _run(tool: str, *arguments: object) -> str:
    command = [str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _parsed(listing: str) -> tuple[list[str], list[list[str]]]:
    """The instructions, and those of each innermost loop: from a label to a branch back to it."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    spans: list[tuple[int, int]] = []
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif code := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?(.*?)\s*;", line):
            branch = re.match(r"BRA.*`\((\.L_x_\d+)\)", code[1])
            if branch and branch[1] in labels:
                spans.append((labels[branch[1]], len(instructions)))
            instructions.append(code[1])
    inner = [span for span in spans if not any(_within(other, span) for other in spans if other != span)]
    return instructions, [instructions[first : last + 1] for first, last in inner]


def _within(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= span[0] and span[1] <= other[1]
