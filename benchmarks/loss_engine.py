"""Time and peak memory of TS2 on each engine, against plain cross-entropy and the public TS2 formula.

    python benchmarks/loss_engine.py                      # all shapes, a few minutes on one core
    python benchmarks/loss_engine.py --shape 1024 256 128256 --rounds 7

Measured from hidden states [N, H] and a head [K, H] to the gradients of both, in float32. All subjects take
turns in one process, so that a machine whose speed drifts moves their ratios little; the median of the rounds counts.
Memory is the growth of the process's peak over its inputs, in a process of its own per subject, in units of one
float32 tensor [N, K]; the head's gradient [K, H], which every subject must hold, is taken off.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import entmax
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ts2_lightning.engines import ChunkedEngine, FullEngine, LossEngine
from ts2_lightning.losses import CrossEntropyLoss, TokenLoss, TS2Loss

SHAPES = [(256, 256, 128256), (256, 1024, 128256), (1024, 256, 128256), (1024, 1024, 32000), (1024, 1024, 128256)]
"""(N tokens, H width, K vocabulary)."""

Objective = Callable[[nn.Linear, Tensor, Tensor], Tensor]


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


def with_engine(engine: LossEngine, loss: TokenLoss) -> Objective:
    """The mean loss, all statistics included."""
    return lambda head, hidden_states, labels: engine(loss, head, hidden_states, labels).total / len(labels)


SUBJECTS: dict[str, Objective] = {
    "plain CE": plain_cross_entropy,
    "public TS2 formula": public_ts2,
    "TS2, full": with_engine(FullEngine(), TS2Loss()),
    "TS2, chunked": with_engine(ChunkedEngine(), TS2Loss()),
    "CE, chunked": with_engine(ChunkedEngine(), CrossEntropyLoss()),
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


def measure_time(shape: tuple[int, int, int], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every subject, after one round that is not counted."""
    data = inputs(shape)
    seconds: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for _ in range(rounds + 1):
        for name, objective in SUBJECTS.items():
            start = time.perf_counter()
            step(objective, *data)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


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
    command = [sys.executable, __file__, "--threads", str(threads), "--shape", *map(str, shape), "--memory-of", subject]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(shape: tuple[int, int, int], rounds: int, threads: int) -> dict[str, object]:
    """Measures one shape and prints its rows."""
    seconds = measure_time(shape, rounds)
    rows = {}
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds["plain CE"], strict=True))
        rows[name] = {
            "seconds": round(statistics.median(values), 4),
            "to_plain_ce": round(ratio, 3),
            "memory_in_nk": round(memory_in_a_process(shape, name, threads), 3),
        }
        print(f"{shape!s:22} {name:20} {rows[name]['seconds']:9.3f} s {ratio:7.2f} {rows[name]['memory_in_nk']:8.2f}")
    return {"tokens": shape[0], "width": shape[1], "vocabulary": shape[2], "subjects": rows}


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("N", "H", "K"), help="one shape only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--memory-of", choices=list(SUBJECTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = [tuple(arguments.shape)] if arguments.shape else SHAPES
    if arguments.memory_of:
        print(measure_memory(shapes[0], arguments.memory_of))
        return
    print(f"{'(N, H, K)':22} {'subject':20} {'median':>11} {'/ CE':>7} {'[N, K]':>8}")
    results = [report(shape, arguments.rounds, arguments.threads) for shape in shapes]
    if arguments.out:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        record = {"command": " ".join(sys.argv), "machine": machine, "rounds": arguments.rounds, "results": results}
        arguments.out.write_text(json.dumps(record | {"threads": arguments.threads}, indent=2) + "\n")


if __name__ == "__main__":
    main()
