"""Time and peak memory of every objective, against plain cross-entropy, the papers' public formulas, the entmax
package and `torch.compile`.

    python -m benchmarks.loss_engine --out figures.json           # all shapes; about an hour on one core
    python -m benchmarks.loss_engine --shape 1024 256 128256 --subjects TS2 'public TS2' --rounds 7
    python -m benchmarks.loss_engine --table figures.json         # the table of the README from figures

Measured from hidden states [N, H] and a head [K, H] to the gradients of both, in float32. All subjects take
turns in one process, in processor time; the median of the rounds' ratios counts, and their quartiles are their spread.
Memory is the growth of the process's peak over its inputs, in a process of its own per subject, in units of one
float32 tensor [N, K]; the head's gradient [K, H], which every subject must hold, is taken off. It is measured at the
largest shape.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import entmax
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.record import ROOT, spread, write
from ts2_lightning.engines import ChunkedEngine, FullEngine, LossEngine
from ts2_lightning.losses import (
    CrossEntropyLoss,
    EntmaxLoss,
    EntropyBonusLoss,
    ExponentialInflationLoss,
    FenchelYoungPlusLoss,
    FocalLoss,
    GEMLoss,
    LabelSmoothingLoss,
    LambdaPRLoss,
    LogarithmicInflationLoss,
    PowerInflationLoss,
    SparsemaxLoss,
    SuppressionOnlyLoss,
    TOFULoss,
    TokenLoss,
    TS2Loss,
)
from ts2_lightning.types import TOKEN_STATISTICS, Targets

SHAPES = [
    *[(256, 256, 128256), (256, 1024, 128256), (1024, 256, 128256), (1024, 1024, 32000)],
    *[(1024, 256, 8192), (256, 640, 262144), (1024, 1024, 128256)],
]
"""(N tokens, H width, K vocabulary); 640 x 262,144 is the head of Gemma 3 270M. The last has the most memory."""

TURN = 50
"""Tokens of a response, for the losses that ask."""

Objective = Callable[[nn.Linear, Tensor, Tensor], Tensor]

LOSSES: dict[str, TokenLoss] = {
    "CE": CrossEntropyLoss(),
    "label smoothing": LabelSmoothingLoss(),
    "entropy bonus": EntropyBonusLoss(),
    "focal": FocalLoss(),
    "lambda-PR": LambdaPRLoss(),
    "GEM": GEMLoss(),
    "GEM, logsigmoid": GEMLoss(h="logsigmoid"),
    "TOFU": TOFULoss(),
    "sparsemax": SparsemaxLoss(),
    "entmax 1.5": EntmaxLoss(1.5),
    "entmax 1.25": EntmaxLoss(1.25),
    "TS2": TS2Loss(),
    "TS2, c 2": TS2Loss(logit_scale=2.0),
    "TS2, top 5": TS2Loss(top_k=5),
    "Entmax+": FenchelYoungPlusLoss(),
    "suppression only": SuppressionOnlyLoss(),
    "power inflation": PowerInflationLoss(),
    "exponential inflation": ExponentialInflationLoss(),
    "logarithmic inflation": LogarithmicInflationLoss(),
}


def plain_cross_entropy(head: nn.Linear, hidden_states: Tensor, labels: Tensor) -> Tensor:
    """What a training script does without us."""
    return F.cross_entropy(head(hidden_states), labels)


def public_ts2(head: nn.Linear, hidden_states: Tensor, labels: Tensor, alpha: float = 0.25) -> Tensor:
    """TS2 as public code computes it: entmax's sparsemax by a full sort, a softmax, masks over the vocabulary."""
    logits = head(hidden_states)
    base = entmax.sparsemax_loss(logits, labels)
    with torch.no_grad():
        kept = (entmax.sparsemax(logits, dim=-1) > 0).scatter(-1, labels[:, None], True)
    tail = (logits.softmax(-1) * ~kept).sum(-1).clamp(max=0.99)
    return (base - alpha * torch.log(1 - tail)).mean()


def public_gem(head: nn.Linear, hidden_states: Tensor, labels: Tensor, beta: float = 0.7) -> Tensor:
    """GEM as public code computes it (GEM, appendix B.1): two softmaxes over the vocabulary, and their product."""
    logits = head(hidden_states)
    with torch.no_grad():
        q = (logits / beta).softmax(-1)
    log_p = logits.log_softmax(-1)
    return (q * (log_p - log_p.gather(-1, labels[:, None]))).sum(-1).mean()


def entmax_package(function: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """A loss of the entmax package on the logits of the head."""
    return lambda head, hidden_states, labels: function(head(hidden_states), labels).mean()


def with_engine(engine: LossEngine, loss: TokenLoss, names: Collection[str] = TOKEN_STATISTICS) -> Objective:
    """The mean loss of ours."""

    def objective(head: nn.Linear, hidden_states: Tensor, labels: Tensor) -> Tensor:
        places = torch.arange(len(labels)) % TURN + 1
        lengths = torch.full_like(places, TURN)
        output = engine(loss, head, hidden_states, Targets(labels, None, places, lengths), names)
        return output.total / len(labels)

    return objective


PUBLIC: dict[str, Objective] = {
    "plain CE": plain_cross_entropy,
    "plain CE, compiled": torch.compile(plain_cross_entropy),
    "public TS2": public_ts2,
    "public GEM": public_gem,
    "public GEM, compiled": torch.compile(public_gem),
    "entmax's sparsemax": entmax_package(entmax.sparsemax_loss),
    "entmax's 1.5": entmax_package(entmax.entmax15_loss),
    "entmax's 1.25, bisection": entmax_package(lambda x, y: entmax.entmax_bisect_loss(x, y, 1.25)),
}

SLOW = [name for name in PUBLIC if name == "public TS2" or name.startswith("entmax's")]
"""Measured in one round only."""

IN_README = [
    *["plain CE", "plain CE, compiled", "public TS2", "public GEM", "public GEM, compiled", "entmax's sparsemax"],
    *["entmax's 1.5", "CE", "GEM", "TOFU", "focal", "sparsemax", "entmax 1.5", "TS2", "Entmax+"],
]

NO_STATISTICS = ", no statistics"
BARE = ["CE", "GEM", "sparsemax", "entmax 1.5", "TS2"]
"""Measured without statistics too."""

SUBJECTS: dict[str, Objective] = {
    **PUBLIC,
    "TS2, full": with_engine(FullEngine(), TS2Loss()),
    **{name: with_engine(ChunkedEngine(), loss) for name, loss in LOSSES.items()},
    **{name + NO_STATISTICS: with_engine(ChunkedEngine(), LOSSES[name], ()) for name in BARE},
}


def inputs(shape: tuple[int, int, int]) -> tuple[nn.Linear, Tensor, Tensor]:
    """A random head, and hidden states some of which point at the gold token: rows from flat to one-hot."""
    n, h, k = shape
    torch.manual_seed(0)
    head, labels = nn.Linear(h, k, bias=False), torch.randint(k, (n,))
    with torch.no_grad():
        head.weight.normal_()
        noise = F.normalize(torch.randn(n, h), dim=-1) * 1.5
        hidden_states = noise + head.weight[labels] * torch.rand(n, 1) * 16 / h
    return head, hidden_states.requires_grad_(), labels


def step(objective: Objective, head: nn.Linear, hidden_states: Tensor, labels: Tensor) -> None:
    """One forward and backward pass, from no gradients."""
    head.weight.grad = hidden_states.grad = None
    objective(head, hidden_states, labels).backward()


def measure_time(shape: tuple[int, int, int], subjects: Sequence[str], rounds: int) -> dict[str, dict[int, float]]:
    """Processor seconds of every subject by round, after a step of some that is not counted (it compiles)."""
    data = inputs(shape)
    for name in subjects:
        if name == "plain CE" or name.endswith(", compiled"):
            step(SUBJECTS[name], *data)
    seconds: dict[str, dict[int, float]] = {name: {} for name in subjects}
    for turn in range(rounds):
        for name in subjects:
            if turn == 0 or name not in SLOW:
                start = time.process_time()
                step(SUBJECTS[name], *data)
                seconds[name][turn] = time.process_time() - start
        print(f"{shape}: round {turn + 1} of {rounds}", file=sys.stderr)
    return seconds


def measure_memory(shape: tuple[int, int, int], subject: str) -> float:
    """Growth of this process's peak memory in one step, over its inputs and the head's gradient, in [N, K]."""
    n, h, k = shape
    step(SUBJECTS[subject], *inputs((2, 4, 300)))  # libraries allocate on first use
    data = inputs(shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    step(SUBJECTS[subject], *data)
    return (resident("VmHWM") - before - k * h * 4) / (n * k * 4)


def resident(field: str) -> int:
    """Resident bytes of this process: now (`VmRSS`) or at the peak (`VmHWM`). Linux only."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def memory_in_a_process(shape: tuple[int, int, int], subject: str, threads: int) -> float:
    """`measure_memory` where nothing has been allocated before."""
    options = ["--threads", str(threads), "--shape", *map(str, shape), "--memory-of", subject]
    command = [sys.executable, "-m", "benchmarks.loss_engine", *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def report(
    shape: tuple[int, int, int], subjects: Sequence[str], rounds: int, threads: int, memory: bool
) -> dict[str, Any]:
    """Measures one shape and prints its rows."""
    seconds = measure_time(shape, subjects, rounds)
    rows = {}
    for name, values in seconds.items():
        fused = "CE" + NO_STATISTICS if name.endswith(NO_STATISTICS) else "CE"
        row: dict[str, float] = {"seconds": round(statistics.median(values.values()), 4)}
        row |= spread("to_plain_ce", ratios(values, seconds["plain CE"]))
        if name.removesuffix(NO_STATISTICS) in LOSSES:
            row |= spread("to_fused_ce", ratios(values, seconds[fused]))
        if memory and not name.endswith(NO_STATISTICS):
            row["memory_in_nk"] = round(memory_in_a_process(shape, name, threads), 3)
        rows[name] = row
        print(f"{shape!s:20} {name:38}", *(f"{key} {value:8.3f}" for key, value in row.items()), flush=True)
    return {"tokens": shape[0], "width": shape[1], "vocabulary": shape[2], "subjects": rows}


def ratios(values: dict[int, float], others: dict[int, float]) -> list[float]:
    """The ratio within each round."""
    return [value / others[turn] for turn, value in values.items()]


def table(record: dict[str, Any], subjects: Sequence[str]) -> str:
    """The figures as Markdown: a row per subject, a column per shape, plain cross-entropy = 1.

    In parentheses without statistics. The last column is memory beyond the head's gradient, at the last shape.
    """
    results = record["results"]
    shapes = [f"{r['tokens']:,} x {r['width']:,} x {r['vocabulary']:,}" for r in results]
    lines = ["| tokens x width x vocabulary | " + " | ".join([*shapes, "memory"]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(shapes) + 1))
    for name in subjects:
        cells = []
        for result in results:
            row, bare = result["subjects"][name], result["subjects"].get(name + NO_STATISTICS)
            cells.append(f"{row['to_plain_ce']:.2f}" + (f" ({bare['to_plain_ce']:.2f})" if bare else ""))
        cells.append(f"{results[-1]['subjects'][name]['memory_in_nk']:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("N", "H", "K"), help="one shape only")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory, which takes a process for each")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file, after every shape")
    parser.add_argument("--table", type=Path, help="print the table of this JSON file, and measure nothing")
    parser.add_argument("--memory-of", choices=list(SUBJECTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.subjects) - set(SUBJECTS))
    if unknown:
        parser.error(f"unknown subject {unknown[0]!r}; there are: {', '.join(SUBJECTS)}")
    references = ["plain CE", "CE", "CE" + NO_STATISTICS]
    arguments.subjects = list(dict.fromkeys([*references, *arguments.subjects]))
    return arguments


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = parse()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text()), IN_README))
        return
    torch.set_num_threads(arguments.threads)
    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    if arguments.memory_of:
        print(measure_memory(shapes[0], arguments.memory_of))
        return
    results: list[dict[str, Any]] = []
    for shape in shapes:
        memory = shape == shapes[-1] and not arguments.no_memory
        results.append(report(shape, arguments.subjects, arguments.rounds, arguments.threads, memory))
        figures = {"rounds": arguments.rounds, "threads": arguments.threads, "results": results}
        write(arguments.out, figures)


if __name__ == "__main__":
    main()
