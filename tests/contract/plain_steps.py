"""The steps of `steps.py` as a plain loop: transformers' own model, one row at a time, autograd, torch's AdamW.

What is found by any other way is compared with it by `differences`.
"""

import copy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.contract.steps import ANCHOR, CLIP, EPS, LR, MAX_LENGTH, Case
from tests.reference import cross_entropy, divergence, gem, sparsemax, ts2
from ts2_lightning.data import SFTData

FORMULAS = {"ce": cross_entropy, "gem": gem(0.7), "ts2": ts2(0.25), "anchored": ts2(0.25)}
Rows = Sequence[tuple[Tensor, Tensor]]


@lru_cache
def plain_rows(world: Path, split: str) -> Rows:
    """Ids of every row, and the places of its supervised tokens."""
    data = SFTData(
        train=str(world / "train.jsonl"),
        validation=str(world / "validation.jsonl"),
        tokenizer=str(world / "tied"),
        max_length=MAX_LENGTH,
    )
    data.setup(None)
    rows = [data.rows(split)[i] for i in range(len(data.rows(split)))]
    places = [[place for start, stop in row.spans.tolist() for place in range(start, stop)] for row in rows]
    return [(torch.tensor(row.ids).long(), torch.tensor(where)) for row, where in zip(rows, places, strict=True)]


def plain_steps(case: Case, world: Path, steps: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What `steps.run` returns, and the gradients.

    In float64; for bf16-mixed in autocast over float32, but for what follows the hidden states.

    Args:
        case: what to train.
        world: that `write_world` wrote.
        steps: the rows of each.
    """
    mixed = case.precision == "bf16-mixed"
    model = AutoModelForCausalLM.from_pretrained(world / case.model, dtype=torch.float32 if mixed else torch.float64)
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0)
    logged, weights = {}, []
    for number, rows in enumerate(steps, 1):
        train = plain_rows(world, "train")
        logits, labels = logits_of(model, [train[row] for row in rows], mixed)
        objective = FORMULAS[case.loss](logits, labels)
        if case.loss == "anchored":
            objective = objective + ANCHOR * divergence(
                logits_of(reference, [train[row] for row in rows], mixed)[0], logits
            )
        objective = objective.mean()
        optimizer.zero_grad()
        objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        logged[number] = statistics(logits.detach(), labels) | {
            "train/objective": objective.item(), "train/gradient_norm": norm.item(),
        }  # fmt: skip
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    with torch.no_grad():
        logits, labels = logits_of(model, plain_rows(world, "validation"), mixed)
    objective = FORMULAS[case.loss](logits, labels)
    if case.loss == "anchored":
        with torch.no_grad():
            objective += ANCHOR * divergence(logits_of(reference, plain_rows(world, "validation"), mixed)[0], logits)
    logged[len(steps)] |= statistics(logits, labels, "val") | {"val/objective": objective.mean().item()}
    return {"rows": [list(rows) for rows in steps], "logged": logged, "weights": weights}


def logits_of(model: PreTrainedModel, rows: Rows, mixed: bool) -> tuple[Tensor, Tensor]:
    """Logits [n, K] in float64 and gold tokens [n] of rows, one at a time; in float64 from the hidden states on."""
    logits, labels = [], []
    for ids, places in rows:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0, places - 1]
        product = hidden.double() @ model.get_output_embeddings().weight.double().T
        logits.append(product / getattr(model.config, "logits_scaling", 1.0))
        labels.append(ids[places])
    return torch.cat(logits), torch.cat(labels)


def statistics(logits: Tensor, labels: Tensor, prefix: str = "train") -> dict[str, float]:
    """Means of what a step publishes of its tokens."""
    probabilities = logits.softmax(-1)
    support = sparsemax(logits) > 0
    means = {
        "cross_entropy": cross_entropy(logits, labels),
        "entropy": -(probabilities * logits.log_softmax(-1)).sum(-1),
        "gold_probability": probabilities.gather(1, labels[:, None]),
        "gold_in_support": support.gather(1, labels[:, None]).double(),
        "support_size": support.sum(-1).double(),
        "tail_mass": (probabilities * ~support).sum(-1),
        "top1": probabilities.amax(-1),
    }
    return {f"{prefix}/{name}": value.mean().item() for name, value in means.items()}


class Differences(NamedTuple):
    """The largest difference of each kind, as a share of what it is a difference of.

    Attributes:
        objective: of the loss, relative to itself.
        statistics: of everything else that is logged of the tokens, also in the validation at the end, relative to
            itself or to 1, whichever is more.
        gradient_norm: before clipping, relative to itself.
        update: of the weights, beyond their own rounding, relative to the largest change in the tensor.
    """

    objective: float = 0.0
    statistics: float = 0.0
    gradient_norm: float = 0.0
    update: float = 0.0

    def worse(self, other: "Differences") -> "Differences":
        """The larger one of each kind."""
        return Differences(*map(max, self, other))


ROUNDING = Differences(objective=2e-7, statistics=2e-7, gradient_norm=5e-6, update=2e-5)
"""Of float32: sums of some hundred tokens and some thousand gradients, in another order."""

BFLOAT16 = Differences(objective=1e-3, statistics=2e-2, gradient_norm=2e-3, update=5e-2)
"""Of bfloat16 in the layers, eps = 2^-8 = 0.4%: the plain loop rounds the gradient of each row, the step that of each
micro-batch, and statistics count tokens on the edge of a support. The plain loop itself is that far from float32."""


def check_within(found: Differences, bound: Differences, case: str) -> None:
    """Asserts that no difference is larger than its bound."""
    for kind, value, limit in zip(found._fields, found, bound, strict=True):
        assert value <= limit, f"{case}: {kind} differs by {value:.1e}, more than {limit:.1e}"


def differences(
    found: dict[str, Any], wanted: dict[str, Any], before: dict[str, Tensor], steps: int = 2
) -> Differences:
    """Over the first steps of two runs.

    Args:
        found: of `steps.run`.
        wanted: of `plain_steps`, or of another run.
        before: the weights at the start.
        steps: how many are compared.
    """
    assert [sorted(rows) for rows in found["rows"]] == [sorted(rows) for rows in wanted["rows"]]
    assert {"val/objective", "val/cross_entropy", "val/top1"} <= found["logged"][len(found["weights"])].keys()
    assert len(found["weights"]) == len(wanted["weights"]) >= steps
    worst = Differences()
    for step in range(steps):
        worst = worst.worse(_of_numbers(found["logged"][step + 1], wanted["logged"][step + 1]))
        worst = worst.worse(Differences(update=_of_update(found["weights"][step], wanted["weights"][step], before)))
        before = wanted["weights"][step]
    return worst


def _of_numbers(found: dict[str, float], wanted: dict[str, float]) -> Differences:
    names = wanted.keys() & found.keys()
    assert {"train/objective", "train/gradient_norm", "train/entropy", "train/support_size", "train/top1"} <= names
    single = {f"train/{kind}" for kind in ("objective", "gradient_norm")}
    shares = {name: abs(found[name] - wanted[name]) / abs(wanted[name]) for name in single}
    others = names - single - {"train/padding", "train/supervised_tokens_per_second", "train/peak_memory_gb"}
    statistics = max(abs(found[name] - wanted[name]) / max(1.0, abs(wanted[name])) for name in others)
    return Differences(shares["train/objective"], statistics, shares["train/gradient_norm"])


def _of_update(found: dict[str, Tensor], wanted: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    worst = 0.0
    for name, tensor in wanted.items():
        change = (tensor.double() - before[name].double()).abs().max().item()
        rounding = torch.finfo(torch.float32).eps * tensor.abs().max().item()
        error = (found[name].double() - tensor.double()).abs().max().item()
        if error > rounding:  # a weight that is not trained does not change at all
            worst = max(worst, (error - rounding) / max(change, torch.finfo(torch.float64).tiny))
    return worst
