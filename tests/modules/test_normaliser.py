"""The loss of a step is one sum over one count, however the step is split: DESIGN.md's contract."""

import json
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.modules import normaliser
from tests.modules.normaliser import BATCH_SIZE, MAX_LENGTH, VALIDATION, conversation
from tests.reference import cross_entropy, sparsemax, ts2
from tests.support.ranks import launch
from ts2_lightning.data import SFTData
from ts2_lightning.toyworld import write_blank_model

TRAINED = BATCH_SIZE + 3
FORMULAS = {"ce": cross_entropy, "ts2": ts2(0.25)}
TIMING = {"train/supervised_tokens_per_second", "train/peak_memory_gb"}
OF_THE_SPLIT = {"train/padding", *TIMING}


class World(NamedTuple):
    """Where rows and model are, and how to run them."""

    rows: Path
    model: Path
    run: Callable[..., dict[str, Any]]
    two_ranks: Callable[[], dict[tuple[str, int, str], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rows, model, out = (tmp_path_factory.mktemp(name) for name in ("rows", "model", "out"))
    splits = {"train": range(TRAINED), "many": range(TRAINED, TRAINED + 5), "few": range(TRAINED + 5, TRAINED + 7)}
    for split, numbers in splits.items():
        (rows / f"{split}.jsonl").write_text("".join(json.dumps(conversation(n)) + "\n" for n in numbers))
    write_random_model(model)
    runs = [("ce", 4, "none"), ("ts2", 4, "none"), ("ts2", 3, "none"), ("ts2", 4, "packed"), ("ts2", 3, "padding_free")]

    @lru_cache
    def run(loss: str, micro_batch_size: int, packing: str = "none", dtype: str = "float32") -> dict[str, Any]:
        return normaliser.run(str(rows), str(model), loss, micro_batch_size, packing, dtype)

    @lru_cache
    def two_ranks() -> dict[tuple[str, int, str], list[dict[str, Any]]]:
        launch("tests.modules.normaliser", rows, model, out, *(value for triple in runs for value in triple))
        found = [torch.load(out / f"rank{number}.pt") for number in (0, 1)]
        return {triple: [ranks[i] for ranks in found] for i, triple in enumerate(runs)}

    return World(rows, model, run, two_ranks)


def write_random_model(directory: Path) -> None:
    """The toy world's tokenizer and a model whose predictions are neither flat nor certain."""
    write_blank_model(directory)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    model.save_pretrained(directory)


# --- the same step, split in many ways -------------------------------------------------------------------------------


def assert_same(found: dict[str, Any], wanted: dict[str, Any], rounding: float = 1.0) -> None:
    """Loss, every logged number, gradients before clipping and weights after the step, to (float32) rounding."""
    assert [sorted(rows) for rows in wanted["rows"]] == [sorted(rows) for rows in found["rows"]]
    assert len(found["gradients"]) == len(wanted["gradients"]) == 2
    for kind, tolerance in (("gradients", 2e-5), ("weights", 2e-6)):
        for step, (mine, theirs) in enumerate(zip(found[kind], wanted[kind], strict=True)):
            for name, tensor in theirs.items():
                scale = tensor.abs().max().item()
                difference = (mine[name] - tensor).abs().max().item()
                assert difference <= tolerance * rounding * scale, (
                    f"{kind} of {name} in step {step}: {difference / scale}"
                )
    assert_same_numbers(found["logged"], wanted["logged"], rounding)


def assert_same_numbers(
    found: dict[int, dict[str, float]], wanted: dict[int, dict[str, float]], rounding: float
) -> None:
    assert found.keys() == wanted.keys() == {1, 2}
    for step, metrics in wanted.items():
        assert found[step].keys() == metrics.keys()
        assert {"train/objective", "train/cross_entropy", "train/gradient_norm", "train/support_size"} <= metrics.keys()
        for name in metrics.keys() - OF_THE_SPLIT:
            close = pytest.approx(metrics[name], rel=2e-5 * rounding, abs=1e-6 * rounding)
            assert found[step][name] == close, f"{name} of step {step}"


@pytest.mark.parametrize("loss", FORMULAS)
@pytest.mark.parametrize(("micro_batch_size", "accumulation"), [(4, 4), (5, 4), (1, 16)])
def test_micro_batches(loss: str, micro_batch_size: int, accumulation: int, world: World) -> None:
    whole, split = world.run(loss, BATCH_SIZE), world.run(loss, micro_batch_size)
    assert (whole["accumulation"], split["accumulation"]) == (1, accumulation)
    assert [len(rows) for rows in split["rows"]] == [BATCH_SIZE, TRAINED - BATCH_SIZE]
    if micro_batch_size == 1:  # the last step has fewer rows than micro-batches
        assert split["widths"][1] == [1, 1, 1] + [0] * 13
    assert_same(split, whole)


@pytest.mark.parametrize("loss", FORMULAS)
@pytest.mark.parametrize("packing", ["packed", "padding_free"])
@pytest.mark.parametrize(("micro_batch_size", "accumulation"), [(BATCH_SIZE, 1), (4, 4), (1, 16)])
def test_packing(loss: str, packing: str, micro_batch_size: int, accumulation: int, world: World) -> None:
    """The step in float64, with rows that share sequences, against the same rows padded."""
    whole = world.run(loss, BATCH_SIZE, dtype="float64")
    split = world.run(loss, micro_batch_size, packing, "float64")
    assert split["accumulation"] == accumulation
    assert_same(split, whole, rounding=0.1)
    assert split["validation"] == pytest.approx(whole["validation"], rel=1e-6)


def test_padding_is_logged(world: World) -> None:
    """Of all places of a step's micro-batches, the share that no row takes."""
    lengths = [len(ids) for ids, _ in plain_rows(world, "train")]
    assert max(lengths) < MAX_LENGTH < 2 * max(lengths)
    assert min(lengths) < MAX_LENGTH / 4
    run = world.run("ts2", BATCH_SIZE)
    for step, rows in enumerate(run["rows"]):
        tokens, longest = sum(lengths[row] for row in rows), max(lengths[row] for row in rows)
        assert run["logged"][step + 1]["train/padding"] == pytest.approx(1 - tokens / (len(rows) * longest))
    padding = {packing: shares(world.run("ts2", 4, packing, "float64")) for packing in ("packed", "padding_free")}
    padding["none"] = shares(world.run("ts2", 4))
    assert padding["padding_free"] == [0, 0]
    assert 0 < padding["packed"][0] < padding["none"][0] < shares(run)[0]


def shares(run: dict[str, Any]) -> list[float]:
    return [metrics["train/padding"] for _, metrics in sorted(run["logged"].items())]


@pytest.mark.slow  # the imports of another process
@pytest.mark.parametrize(
    ("loss", "micro_batch_size", "packing", "accumulation"),
    [
        ("ce", 4, "none", 2),
        ("ts2", 4, "none", 2),
        ("ts2", 3, "none", 3),
        ("ts2", 4, "packed", 2),
        ("ts2", 3, "padding_free", 3),
    ],
)
def test_two_ranks(loss: str, micro_batch_size: int, packing: str, accumulation: int, world: World) -> None:
    ranks, whole = world.two_ranks()[loss, micro_batch_size, packing], world.run(loss, BATCH_SIZE)
    assert [rank["accumulation"] for rank in ranks] == [accumulation] * 2
    together = [a + b for a, b in zip(*(rank["rows"] for rank in ranks), strict=True)]
    assert not set(ranks[0]["rows"][0]) & set(ranks[1]["rows"][0])
    assert any(0 in rank["widths"][1] for rank in ranks)  # three rows are not enough for all micro-batches
    assert_same({**ranks[0], "rows": together}, whole)
    for name, tensor in ranks[0]["weights"][-1].items():
        assert torch.equal(tensor, ranks[1]["weights"][-1][name]), name
    for step, metrics in ranks[1]["logged"].items():  # the second rank knows the same numbers
        for name in metrics.keys() - TIMING:
            assert metrics[name] == pytest.approx(ranks[0]["logged"][step][name], rel=1e-12), name


# --- what that step is: a plain loop over rows -----------------------------------------------------------------------


def plain_rows(world: World, split: str) -> list[tuple[Tensor, Tensor]]:
    """Ids of every row, and the places of its supervised tokens."""
    file = str(world.rows / f"{split}.jsonl")
    data = SFTData(train=file, tokenizer=str(world.model))
    data.setup(None)
    found = []
    for row in (data.rows("train")[i] for i in range(len(data.rows("train")))):
        places = [place for start, stop in row.spans.tolist() for place in range(start, stop)]
        found.append((torch.tensor(row.ids).long(), torch.tensor(places)))
    return found


def plain_logits(model: PreTrainedModel, ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, K] in float64 and gold tokens [n], from the model as transformers has it, one row at a time."""
    return model(input_ids=ids[None]).logits[0, places - 1], ids[places]


def model_with(world: World, weights: dict[str, Tensor] | None) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float64)
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    return model


@pytest.mark.parametrize("loss", FORMULAS)
def test_it_is_the_sum_over_all_tokens_by_their_number(loss: str, world: World) -> None:
    run, rows = world.run(loss, BATCH_SIZE), plain_rows(world, "train")
    counts = [len(places) for _, places in rows]
    assert len(set(counts)) > 5  # uneven
    for step in (0, 1):
        model = model_with(world, run["weights"][0] if step else None)
        pairs = [plain_logits(model, *rows[row]) for row in run["rows"][step]]
        count = sum(counts[row] for row in run["rows"][step])
        total = torch.stack([FORMULAS[loss](*pair).sum() for pair in pairs]).sum() / count
        total.backward()
        logged = run["logged"][step + 1]
        assert logged["train/objective"] == pytest.approx(total.item(), rel=1e-5)
        plain = sum(cross_entropy(*pair).sum().item() for pair in pairs) / count
        assert logged["train/cross_entropy"] == pytest.approx(plain, rel=1e-5)
        wanted = {name: p.grad for name, p in model.named_parameters()}
        norm = torch.stack([g.square().sum() for g in wanted.values()]).sum().sqrt().item()
        assert logged["train/gradient_norm"] == pytest.approx(norm, rel=1e-4)
        for name, gradient in run["gradients"][step].items():
            error = (gradient.double() - wanted[name]).abs().max() / wanted[name].abs().max()
            assert error < 1e-4, f"{name}: {error}"


def test_the_step_is_clipped_to_the_norm_that_was_asked_for(world: World) -> None:
    """AdamW's first step is -lr * g / (|g| + eps), with g clipped to a norm of 0.5."""
    run = world.run("ce", BATCH_SIZE)
    assert run["logged"][1]["train/gradient_norm"] > 1
    before = dict(model_with(world, None).named_parameters())
    for name, after in run["weights"][0].items():
        gradient = run["gradients"][0][name].double() * 0.5 / run["logged"][1]["train/gradient_norm"]
        wanted = before[name] - gradient / (gradient.abs() + 10)
        assert (after - wanted).abs().max() < 1e-5 * before[name].abs().max()


# --- validation ------------------------------------------------------------------------------------------------------


def plain_validation(world: World, weights: dict[str, Tensor]) -> dict[str, float]:
    """Of all rows, and of those of each set."""
    model = model_with(world, weights)
    with torch.no_grad():
        pairs = {name: [plain_logits(model, *row) for row in plain_rows(world, name)] for name in VALIDATION}
    found = {f"val/{key}": value for key, value in plain_means([*chain(*pairs.values())]).items()}
    for name in VALIDATION:
        found |= {f"val/{name}/{key}": value for key, value in plain_means(pairs[name]).items()}
    assert len({value for key, value in found.items() if key.endswith("cross_entropy")}) == 3
    return found


def plain_means(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    logits, labels = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
    probabilities = logits.softmax(-1)
    plain = cross_entropy(logits, labels).mean().item()
    return {
        "cross_entropy": plain,
        "perplexity": torch.tensor(plain).exp().item(),
        "objective": FORMULAS["ts2"](logits, labels).mean().item(),
        "token_accuracy": (logits.argmax(-1) == labels).double().mean().item(),
        "entropy": -(probabilities * probabilities.log()).sum(-1).mean().item(),
        "support_size": (sparsemax(logits) > 0).sum(-1).double().mean().item(),
        "top1": probabilities.amax(-1).mean().item(),
    }


def check_validation(run: dict[str, Any], world: World) -> None:
    wanted_values = plain_validation(world, run["weights"][-1])
    assert {name for name in run["validation"] if name.endswith("/objective")} == {
        name for name in wanted_values if name.endswith("/objective")
    }
    for name, wanted in wanted_values.items():
        assert run["validation"][name] == pytest.approx(wanted, rel=1e-5), name
        assert run["logged"][2][name] == pytest.approx(wanted, rel=1e-5), name


def test_validation_is_a_plain_loop_over_rows(world: World) -> None:
    check_validation(world.run("ts2", BATCH_SIZE), world)


@pytest.mark.slow
def test_two_ranks_count_every_row_once(world: World) -> None:
    """Five rows and two in batches of three: one rank has an empty batch of the second set."""
    for packing in ("none", "packed"):
        check_ranks(world.two_ranks()["ts2", 4, packing], world)


def check_ranks(ranks: list[dict[str, Any]], world: World) -> None:
    for run in ranks:
        check_validation(run, world)
