"""Reading checkpoints: whole ones, parts of them, and what should not be read."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from tests.callbacks.tiny_llama import write_base
from tests.export.stand_ins import PREFIX, load, logits, save_checkpoint, settings, shake
from ts2_lightning.checkpoint_files.reading import check_plain_values, load_plain_values, read_checkpoint
from ts2_lightning.export import export_checkpoint
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.types import UserError

WEIGHTS = {"network.w": torch.arange(35.0).view(5, 7), "network.v": torch.arange(3.0), "network.u": torch.ones(2, 2)}


class Mischief:
    """Calls something when it is unpickled."""

    def __init__(self, call: Any, *arguments: str) -> None:
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def read(path: Path) -> dict[str, Tensor]:
    return {name: weight.read() for name, weight in read_checkpoint(path).weights.items()}


def check(tensors: dict[str, Tensor]) -> None:
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


def write_distributed(path: Path) -> Path:
    """As Lightning's FSDP2 writes it, by one process."""
    path.mkdir()
    state = {"state_dict": WEIGHTS, "optimizer_0": {"state": {"network.w": torch.zeros(5, 7)}, "lr": 0.1}}
    dcp.save(state, checkpoint_id=path, no_dist=True)
    torch.save({"global_step": 4}, path / "meta.pt")
    return path


def write_deepspeed(path: Path, stage: int, world: int) -> Path:
    """As DeepSpeed writes it: cut here by hand, with the padding that its stages have."""
    folder = path / "checkpoint"
    folder.mkdir(parents=True)
    (path / "latest").write_text("checkpoint")
    groups = [["network.w", "network.v"], ["network.u"]]
    model: dict[str, Any] = {
        "module": {"network.b": torch.tensor([7])}, "buffer_names": ["network.b"], "dp_world_size": world,
        "param_shapes": [{name: WEIGHTS[name].shape for name in names} for names in groups],
        "shared_params": {"network.other": "network.v"}, "global_step": 4,
    }  # fmt: skip
    pieces: list[list[Tensor]] = [[] for _ in range(world)]
    for names in groups:
        if stage < 3:
            flat = torch.cat([WEIGHTS[name].flatten() for name in names])
            flat = torch.cat([flat, torch.full((-len(flat) % (2 * world),), float("nan"))])
            for rank, piece in enumerate(flat.chunk(world)):
                pieces[rank].append(piece.clone())
        else:
            for name in names:
                flat = WEIGHTS[name].flatten()
                flat = torch.cat([flat, torch.full((-len(flat) % world,), float("nan"))])
                for rank, piece in enumerate(flat.chunk(world)):
                    pieces[rank].append(piece.clone())
    for rank in range(world):
        if stage == 3 or rank == 0:
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(model, folder / f"{prefix}mp_rank_00_model_states.pt")
        if stage == 3:  # its sub-groups need not end where a parameter does
            whole = torch.cat(pieces[rank])
            mine: dict[str, Any] = {"fp32_flat_groups": [whole[:4].clone(), whole[4:].clone()]}
        else:
            mine = {"single_partition_of_fp32_groups": pieces[rank]}
        torch.save({"optimizer_state_dict": mine}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return path


def test_one_file(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "global_step": 4}, tmp_path / "a.ckpt")
    check(read(tmp_path / "a.ckpt"))
    assert read_checkpoint(tmp_path / "a.ckpt").step == 4


def test_distributed(tmp_path: Path) -> None:
    path = write_distributed(tmp_path / "a.ckpt")
    check(read(path))
    assert read_checkpoint(path).step == 4
    assert read_checkpoint(path).weights["network.w"].shape == (5, 7)


@pytest.mark.parametrize("form", ["file", "directory"])
def test_moving_averages_are_no_weights(tmp_path: Path, form: str) -> None:
    averages = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    path = tmp_path / "a.ckpt"
    if form == "file":
        torch.save({"state_dict": WEIGHTS, "ema_state_dict": averages, "global_step": 4}, path)
    else:
        both = {**{f"ema_state_dict.{name}": tensor for name, tensor in averages.items()}, **WEIGHTS}
        dcp.save({"state_dict": both}, checkpoint_id=path, no_dist=True)
        torch.save({"global_step": 4}, path / "meta.pt")
    check(read(path))
    ema = read_checkpoint(path).ema
    assert ema.keys() == averages.keys()
    assert all(torch.equal(ema[name].read(), tensor) for name, tensor in averages.items())


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 11])  # 11: file names do not sort as their ranks do
def test_deepspeed(tmp_path: Path, stage: int, world: int) -> None:
    tensors = read(write_deepspeed(tmp_path / "a.ckpt", stage, world))
    assert torch.equal(tensors.pop("network.other"), WEIGHTS["network.v"])
    assert tensors.pop("network.b").tolist() == [7]
    check(tensors)


def test_alignment_between_parameters(tmp_path: Path) -> None:
    """Newer versions of DeepSpeed leave gaps, and say how large they are."""
    path = write_deepspeed(tmp_path / "a.ckpt", stage=2, world=1)
    file = path / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    flat = torch.cat([WEIGHTS["network.w"].flatten(), torch.full((5,), float("nan")), WEIGHTS["network.v"]])
    groups = [flat, WEIGHTS["network.u"].flatten()]
    state = {"single_partition_of_fp32_groups": groups, "param_alignment_paddings": [[5, 0], [0]]}
    torch.save({"optimizer_state_dict": state}, file)
    check({name: tensor for name, tensor in read(path).items() if name in WEIGHTS})


def test_unknown_classes_are_not_made(tmp_path: Path) -> None:
    """A checkpoint that holds more than tensors is read, and what else is in it is left alone."""
    trap, home = tmp_path / "trap", write_distributed(tmp_path / "home")
    copies = Mischief(shutil.copytree, str(home), str(trap))
    held = {"state_dict": WEIGHTS, "global_step": 4, "callbacks": {"x": [copies, Path("/"), Mischief]}}
    torch.save(held, tmp_path / "a.ckpt")
    check(read(tmp_path / "a.ckpt"))
    assert not trap.exists()
    makes = Mischief(os.mkdir, str(trap))
    torch.save({**held, "callbacks": makes}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"b.ckpt: it holds more than tensors and plain values"):
        read_checkpoint(tmp_path / "b.ckpt")
    path = write_distributed(tmp_path / "c.ckpt")
    (path / ".metadata").write_bytes(pickle.dumps(makes))
    with pytest.raises(UserError, match=r"posix.mkdir does not belong into a checkpoint's metadata"):
        read_checkpoint(path)
    assert not trap.exists()


def test_what_a_training_goes_on_with(tmp_path: Path) -> None:
    """The weights alone are no start for the optimizer."""
    content: dict[str, Any] = {"state_dict": WEIGHTS, "global_step": 4, "loops": {}, "pytorch-lightning_version": "2"}
    torch.save(content, tmp_path / "weights.ckpt")
    assert not read_checkpoint(tmp_path / "weights.ckpt").can_go_on
    torch.save({**content, "lr_schedulers": [], "optimizer_states": []}, tmp_path / "whole.ckpt")
    assert read_checkpoint(tmp_path / "whole.ckpt").can_go_on


def test_what_torch_distributed_would_unpickle(tmp_path: Path) -> None:
    """Its own reader runs what is pickled in the metadata, and in entries that are no tensors."""
    check_plain_values(write_distributed(tmp_path / "good.ckpt"))
    trap = tmp_path / "trap"
    makes = Mischief(os.mkdir, str(trap))

    path = write_distributed(tmp_path / "metadata.ckpt")
    (path / ".metadata").write_bytes(pickle.dumps(makes))
    path = write_distributed(tmp_path / "meta.ckpt")
    torch.save({"global_step": 4, "callbacks": makes}, path / "meta.pt")
    path = tmp_path / "entry.ckpt"
    path.mkdir()
    dcp.save({"state_dict": WEIGHTS, "optimizer_0": {"lr": makes}}, checkpoint_id=path, no_dist=True)
    torch.save({"global_step": 4}, path / "meta.pt")
    for name in ("metadata", "meta", "entry"):
        with pytest.raises(UserError, match=r"more than tensors and plain values.*, and loading it might run code"):
            check_plain_values(tmp_path / f"{name}.ckpt")
        assert not trap.exists(), name
    dcp.load({"optimizer_0": {"lr": 0.0}}, checkpoint_id=path, no_dist=True)
    assert trap.exists(), "torch's own reader runs it"


def test_what_deepspeed_would_unpickle(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"module": WEIGHTS, "lr_scheduler": Mischief(os.mkdir, str(trap))}, tmp_path / "states.pt")
    with pytest.raises(UserError, match=r"states.pt: it holds more than .* \(posix.mkdir\), and loading it"):
        load_plain_values(tmp_path / "states.pt")
    assert not trap.exists()
    torch.save({"module": WEIGHTS}, tmp_path / "states.pt")
    check(load_plain_values(tmp_path / "states.pt")["module"])


def test_incomplete_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint, or not a complete one"):
        read_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "text.ckpt").write_text("no zip archive")
    with pytest.raises(UserError, match="no checkpoint, or not a complete one"):
        read_checkpoint(tmp_path / "text.ckpt")
    for content, what in (
        ({"weights": WEIGHTS}, "a dict with weights"),
        (WEIGHTS, r"tensors alone \(3 of them, as a state dict has them\)"),
        ([WEIGHTS], "a list"),
        (WEIGHTS["network.w"], "a Tensor"),
        ({}, "a dict with nothing in it"),
        ({"state_dict": WEIGHTS["network.w"], "global_step": 1}, "a dict with state_dict, global_step"),
        ({"state_dict": WEIGHTS, "ema_state_dict": {"w": 1}}, "a dict with state_dict, ema_state_dict"),
    ):
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=rf"other.ckpt: this is no checkpoint of a fit, it holds {what}$"):
            read_checkpoint(tmp_path / "other.ckpt")
    torch.save({"state_dict": WEIGHTS}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"no checkpoint of a fit, or it is damaged \(KeyError: 'global_step'\)"):
        read_checkpoint(tmp_path / "other.ckpt")
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match=r"other.ckpt: this is no checkpoint of a fit, or it is damaged"):
        read_checkpoint(tmp_path / "other.ckpt")

    path = write_distributed(tmp_path / "cut.ckpt")
    shard = next(path.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="ends early"):
        read_checkpoint(path)
    shard.rename(path / "elsewhere.distcp")
    with pytest.raises(UserError, match="No such file"):
        read_checkpoint(path)

    path = write_deepspeed(tmp_path / "ranks.ckpt", stage=2, world=3)
    (path / "checkpoint" / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match="2 of 3 ranks' optimizer states are there"):
        read_checkpoint(path)

    path = write_deepspeed(tmp_path / "parallel.ckpt", stage=2, world=1)
    shutil.copy(path / "checkpoint/mp_rank_00_model_states.pt", path / "checkpoint/mp_rank_01_model_states.pt")
    with pytest.raises(UserError, match="model-parallel run cannot be exported"):
        read_checkpoint(path)


def test_single_file_export(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=True)
    model = load(base)
    shake(model)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    out = export_checkpoint(checkpoint, LanguageModelConfig(str(base)), tmp_path / "out", settings(base))
    assert torch.equal(logits(load(out)), logits(model))


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    base, wide = write_base(tmp_path / "base"), write_base(tmp_path / "wide", width=32)
    checkpoint = save_checkpoint(load(base), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"not of this model: it has in another shape"):
        export_checkpoint(checkpoint, LanguageModelConfig(str(wide)), tmp_path / "out", settings(wide))
    torch.save({"state_dict": {"network.w": torch.ones(1)}, "global_step": 1}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"b.ckpt is a checkpoint of another model: it has no model.embed_tokens"):
        export_checkpoint(tmp_path / "b.ckpt", LanguageModelConfig(str(base)), tmp_path / "out", settings(base))
    state = {f"{PREFIX}{name}": tensor for name, tensor in load(base).state_dict().items()}
    del state[f"{PREFIX}model.norm.weight"]
    torch.save({"state_dict": state, "global_step": 1}, tmp_path / "c.ckpt")
    with pytest.raises(UserError, match=r"it lacks model.norm.weight"):
        export_checkpoint(tmp_path / "c.ckpt", LanguageModelConfig(str(base)), tmp_path / "out", settings(base))
    assert not (tmp_path / "out").exists()
