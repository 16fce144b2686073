"""Names, numbers, and which checkpoint is meant."""

import multiprocessing
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ts2_lightning.runs.checkpoints import best_checkpoint, find_checkpoints, newest_checkpoint, run_of
from ts2_lightning.runs.directory import claim_next, discard, latest_config, next_config, run_name
from ts2_lightning.types import UserError


def checkpoint(path: Path, age: int, **content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state": torch.zeros(100), **content}, path)
    os.utime(path, ns=(10**18 - age * 10**9,) * 2)
    return path


@pytest.mark.parametrize(
    ("given", "files", "name"),
    [
        (None, [], "run"),
        (None, ["configs/model/a.yaml", "configs/experiment/ts2.yaml"], "ts2"),
        ("x", ["configs/experiment/ts2.yaml"], "x"),
        ("sweep/alpha=0.5", [], "sweep/alpha=0.5"),
    ],
)
def test_name(given: str | None, files: list[str], name: str) -> None:
    assert run_name(given, files) == name


@pytest.mark.parametrize("name", ["/x", "../x", "a//b", ".", ".hidden", "a/3", "a/"])
def test_a_name_outside_of_the_runs_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        run_name(name, [])


def test_numbers_go_up_and_are_not_used_again(tmp_path: Path) -> None:
    claimed = [claim_next(tmp_path / "a").name for _ in range(3)]
    assert claimed == ["1", "2", "3"]
    (tmp_path / "a" / "2").rmdir()
    (tmp_path / "a" / "11").mkdir()
    (tmp_path / "a" / "notes").mkdir()
    assert claim_next(tmp_path / "a").name == "12"


def claim_many(all_are_there: Any, directory: Path, claimed: Any) -> None:
    all_are_there.wait(60)
    claimed.put([claim_next(directory).name for _ in range(50)])


def test_concurrent_claims_never_share(tmp_path: Path) -> None:
    """Of processes that begin at the same time."""
    forks = multiprocessing.get_context("fork")
    all_are_there, queue = forks.Barrier(4), forks.SimpleQueue()
    arguments = (all_are_there, tmp_path / "a", queue)
    processes = [forks.Process(target=claim_many, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    claimed = [name for _ in processes for name in queue.get()]
    assert len(claimed) == 200
    assert len(set(claimed)) == 200


def test_discard_keeps_what_others_use(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second = claim_next(runs / "a"), claim_next(runs / "a")
    discard(second, runs)
    assert first.is_dir()
    assert not second.exists()
    discard(first, runs)
    assert not runs.exists()
    assert tmp_path.exists()


def test_last_is_the_newest_complete_checkpoint_of_the_newest_run_that_has_one(tmp_path: Path) -> None:
    named = tmp_path / "a"
    checkpoint(named / "2/checkpoints/best.ckpt", age=50)
    old = checkpoint(named / "10/checkpoints/last.ckpt", age=90)
    (named / "11/checkpoints").mkdir(parents=True)
    cut = named / "11/checkpoints/last.ckpt"
    cut.write_bytes(old.read_bytes()[:-30])
    assert not zipfile.is_zipfile(cut)
    assert find_checkpoints("last", named)[0] == old
    newer = checkpoint(named / "10/checkpoints/best.ckpt", age=10)
    assert find_checkpoints("last", named)[0] == newer


def test_of_two_of_the_same_age_last_is_taken(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a/1/checkpoints/best.ckpt", age=5)
    last = checkpoint(tmp_path / "a/1/checkpoints/last.ckpt", age=5)
    assert find_checkpoints("last", tmp_path / "a")[0] == last


def test_sharded_checkpoints_count_when_their_last_file_is_there(tmp_path: Path) -> None:
    shards = tmp_path / "a/1/checkpoints/last.ckpt"
    shards.mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp"):
        (shards / name).write_text("x")
        assert newest_checkpoint(tmp_path / "a/1") is None
    (shards / "meta.pt").write_text("x")
    assert newest_checkpoint(tmp_path / "a/1") == shards


def test_best_of_another_callback_is_found_though_the_run_was_moved(tmp_path: Path) -> None:
    state = {"ModelCheckpoint{}": {"best_model_path": "/elsewhere/checkpoints/epoch=1.ckpt"}}
    run = tmp_path / "a/1"
    checkpoint(run / "checkpoints/last.ckpt", age=0, callbacks=state)
    assert best_checkpoint(run) is None
    best = checkpoint(run / "checkpoints/epoch=1.ckpt", age=5)
    assert best_checkpoint(run) == best


@pytest.mark.parametrize("wanted", ["last", "best"])
def test_nothing_to_resume_says_where_it_looked(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(UserError, match=r"nothing to resume: there is no run in .*alpah"):
        find_checkpoints(wanted, tmp_path / "runs/alpah")
    (tmp_path / "runs/alpha/1").mkdir(parents=True)
    with pytest.raises(UserError, match="did you mean --name alpha"):
        find_checkpoints(wanted, tmp_path / "runs/alpah")
    with pytest.raises(UserError, match=r"no complete checkpoint in .*alpha/\*/checkpoints"):
        find_checkpoints(wanted, tmp_path / "runs/alpha")


def test_a_model_directory_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"give it as --model\.lm\.path"):
        find_checkpoints(str(tmp_path), tmp_path)


def test_run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "runs/a/1/checkpoints/last.ckpt", age=0)
    assert run_of(path) is None, "no run without its configuration"
    (tmp_path / "runs/a/1/config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run_of(path) == Path("runs/a/1")


def test_configurations_of_later_starts_lie_beside_the_first(tmp_path: Path) -> None:
    for name in ("config.yaml", "config-resume-1.yaml", "config-resume-2.yaml"):
        assert next_config(tmp_path).name == name
        (tmp_path / name).write_text("")
        assert latest_config(tmp_path).name == name
