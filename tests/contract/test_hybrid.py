"""FSDP2 that shards inside a pair of ranks, with copies in another pair, takes the steps of one device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from tests.contract.hybrid_steps import MICRO_BATCH, RANKS, SHARDED, TO_A_FILE
from tests.contract.plain_steps import BFLOAT16, ROUNDING, check_within, differences, plain_steps
from tests.contract.steps import BATCH_SIZE, PARTIAL, POISONED_CASE
from tests.support.errors import refused
from tests.support.ranks import launch
from ts2_lightning.checkpoint_files.reading import read_checkpoint
from ts2_lightning.export.export import ExportSettings, export_checkpoint
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.layout import read_layout
from ts2_lightning.planning.model import measure
from ts2_lightning.planning.state import state_of
from ts2_lightning.strategies import FSDP2, shard_ranks

Ranks = list[dict[str, Any]]
GROUPS = 3  # of two layers and the root, which communicate apart
RUNS = {"sharded": SHARDED, "to a file": TO_A_FILE, "skipped": POISONED_CASE}


@pytest.fixture(scope="module")
def out(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where four ranks, in one launch, have left what they found, and their checkpoints."""
    directory = tmp_path_factory.mktemp("hybrid")
    launch("tests.contract.hybrid_steps", world, directory, timeout=600)
    return directory


@pytest.fixture(scope="module")
def ranks(out: Path) -> Ranks:
    return [torch.load(out / f"rank{number}.pt") for number in range(RANKS)]


def rows_of(ranks: Ranks, run: str) -> list[list[int]]:
    """The rows of both steps, over all ranks; a rank that has none in a step does not list it."""
    steps = [[row for rank in ranks for rows in rank[run]["rows"][step : step + 1] for row in rows] for step in (0, 1)]
    assert [len(set(rows)) for rows in steps] == [BATCH_SIZE, PARTIAL]
    return [sorted(rows) for rows in steps]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["sharded", "to a file"])
def test_the_steps_are_those_of_a_plain_loop(run: str, ranks: Ranks, world: Path) -> None:
    """Two micro-batches a step, some of them empty; all ranks end with the same weights."""
    case, rows = RUNS[run], rows_of(ranks, run)
    before = dict(AutoModelForCausalLM.from_pretrained(world / case.model).named_parameters())
    found = {**ranks[0][run], "rows": rows}
    assert found["accumulation"] == BATCH_SIZE // (RANKS * MICRO_BATCH) == 2
    bound = BFLOAT16 if case.precision == "bf16-mixed" else ROUNDING
    check_within(differences(found, plain_steps(case, world, rows), before), bound, str(case))
    for rank in ranks[1:]:
        for mine, theirs in zip(found["weights"], rank[run]["weights"], strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_a_step_that_is_left_out_leaves_nothing_behind(ranks: Ranks, world: Path) -> None:
    """The gradient that is not finite came with a micro-batch whose sum had not crossed to the copy yet."""
    rows = rows_of(ranks, "skipped")
    before = dict(AutoModelForCausalLM.from_pretrained(world / POISONED_CASE.model).named_parameters())
    skipped = ranks[0]["skipped"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in skipped["weights"][0].items())
    second = {"rows": rows[1:], "weights": skipped["weights"][1:], "logged": {1: skipped["logged"][2]}}
    check_within(differences(second, plain_steps(POISONED_CASE, world, rows[1:]), before, 1), ROUNDING, "skipped")


@pytest.mark.slow
def test_gradients_cross_to_the_copy_once_a_step(ranks: Ranks) -> None:
    assert [rank["crossings"] for rank in ranks] == [2 * GROUPS] * RANKS


@pytest.mark.slow
def test_what_a_rank_holds_is_what_the_plan_says(ranks: Ranks, world: Path) -> None:
    """To the byte: half of everything, not a quarter."""
    strategy = {"class_path": "ts2_lightning.strategies.FSDP2", "init_args": {"shard_size": 2}}
    layout = read_layout(strategy, "32-true", RANKS)
    sizes = measure(LanguageModelConfig(str(world / SHARDED.model)), layout, MicroBatch(1, 4), modes=(False,))
    for number, rank in enumerate(ranks):
        state = state_of(sizes.weights, layout, accumulation=2, rank=number % 2)
        assert rank["held"] == {
            "weights": state.held_weights() + sizes.buffers,
            "gradients": state.held_gradients(),
            "optimizer": state.held_optimizer(),
        }


@pytest.mark.slow
@pytest.mark.parametrize("run", ["sharded", "to a file"])
def test_checkpoints(run: str, ranks: Ranks, out: Path, world: Path, tmp_path: Path) -> None:
    """A checkpoint has the state once, and its export has the weights."""
    case, checkpoint = RUNS[run], out / run / "step-000002.ckpt"
    weights = ranks[0][run]["weights"][1]
    assert read_checkpoint(checkpoint).step == 2
    if run == "sharded":
        stored = FileSystemReader(checkpoint).read_metadata().storage_data or {}
        written = sum(file.stat().st_size for file in checkpoint.glob("*.distcp"))
        assert sum(part.length for part in stored.values()) == written
    lm = LanguageModelConfig(str(world / case.model))
    export = export_checkpoint(checkpoint, lm, tmp_path / "export", ExportSettings(lm.path, dtype="float32"))
    exported = load_file(export / "model.safetensors")
    assert exported
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exported.items())


@pytest.mark.slow
def test_a_run_goes_on(ranks: Ranks) -> None:
    """Exactly; and to rounding where its checkpoint is a file, and its weights are sharded over all ranks now."""
    for rank in ranks:
        whole, resumed = rank["sharded"], rank["sharded resumed"]
        assert all(torch.equal(weight, whole["weights"][1][name]) for name, weight in resumed["weights"][0].items())
        assert list(resumed["logged"]) == [2]
        assert resumed["logged"][2]["train/objective"] == whole["logged"][2]["train/objective"]
    whole = ranks[0]["to a file"]
    second, resumed = (
        {"rows": [], "weights": run["weights"][-1:], "logged": {1: run["logged"][2]}}
        for run in (whole, ranks[0]["to a file resumed"])
    )
    check_within(differences(resumed, second, whole["weights"][0], 1), BFLOAT16, "sharded over all ranks")


def test_how_many_ranks_share_a_copy() -> None:
    assert [shard_ranks(size, 8, 2, 4) for size in (None, "node", 4, 1)] == [8, 2, 4, 1]  # type: ignore[arg-type]
    with refused(r"^FSDP2\(shard_size\): 8 ranks with rows of their own cannot be divided by 3$"):
        shard_ranks(3, 8, 1, 4)
    with refused(r"^FSDP2\(shard_size\): the 3 ranks of a node cannot be divided by tensor_parallel_size 2; set"):
        shard_ranks("node", 6, 2, 3)
    with refused(r"^FSDP2: shard_size must be a whole number of at least 1"):
        FSDP2(shard_size=0)
