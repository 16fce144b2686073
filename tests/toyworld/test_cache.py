"""Files and base models of the toy world in the cache: whole, shared, never half-made."""

import json
import multiprocessing
import threading

import pytest

from ts2_lightning.toyworld import (
    base_directory,
    building_directory,
    cache_directory,
    is_complete,
    load_world,
    publish,
    resolve_source,
    world_hash,
)
from ts2_lightning.toyworld import cache as cache_module
from ts2_lightning.toyworld.rows import train_rows
from ts2_lightning.types import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_where_the_cache_is(cache, monkeypatch):
    assert cache_directory() == cache
    monkeypatch.delenv("TS2_CACHE_DIR")
    assert cache_directory().parts[-2:] == (".cache", "ts2_lightning")


def test_sources(cache):
    path = resolve_source("toyworld:train?seed=3")
    assert path == cache / "toyworld" / world_hash() / "train-seed3.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == list(train_rows(load_world(), 3))
    assert resolve_source("toyworld:train") == resolve_source("toyworld:train?seed=0")
    assert len(resolve_source("toyworld:validation").read_text().splitlines()) == 497
    assert len(resolve_source("toyworld:test").read_text().splitlines()) == 795
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]  # nothing left beside
    pretrain = resolve_source("toyworld:pretrain?seed=0").read_text().splitlines()
    assert len(pretrain) == 32000
    assert list(json.loads(pretrain[-1])) == ["input_ids"]


def test_a_present_file_is_reused():
    path = resolve_source("toyworld:validation")
    path.write_text("kept")
    assert resolve_source("toyworld:validation").read_text() == "kept"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("toyworld:trian", "did you mean toyworld:train?"),
        ("toyworld:valid", "did you mean toyworld:validation?"),
        ("toyworld:xyz", "there are train, validation, test, pretrain"),
        ("toyworld:train?sed=1", "expected '?seed=' and a whole number"),
        ("toyworld:train?seed=-1", "seed must be a whole number of at least 0 and at most 4294967295, got -1"),
        ("toyworld:train?seed=1.5", "got '1.5'"),
        ("toyworld:train?seed=²", "got '²'"),
        ("toyworld:train?seed=4294967296", "got 4294967296"),
        ("toyworld:test?seed=1", "'test' takes no parameters"),
        ("data/train.jsonl", "expected it to begin with 'toyworld:'"),
    ],
)
def test_errors_of_sources(uri, message):
    with pytest.raises(UserError) as error:
        resolve_source(uri)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def _resolve(barrier, results):
    barrier.wait()
    results.put(len(resolve_source("toyworld:train?seed=0").read_text().splitlines()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_processes_that_start_together(cache):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.SimpleQueue()
    processes = [context.Process(target=_resolve, args=(barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get() for _ in processes] == [536] * 4
    for process in processes:
        process.join()
    assert [p.name for p in (cache / "toyworld" / world_hash()).iterdir()] == ["train-seed0.jsonl"]


def test_readers_see_whole_files_only(cache):
    """Two writers at once: the file is absent or whole at every moment, and nothing stays beside it."""
    path = cache / "rows.jsonl"
    rows = [{"n": i} for i in range(20000)]
    barrier = threading.Barrier(2)
    seen = []

    def write():
        barrier.wait()
        cache_module._write_rows(path, iter(rows))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.append(path.read_text().count("\n"))
    for writer in writers:
        writer.join()
    assert set(seen) <= {len(rows)}
    assert path.read_text().count("\n") == len(rows)
    assert [p.name for p in cache.iterdir()] == ["rows.jsonl"]


def test_a_writer_that_fails_leaves_nothing(cache):
    def broken():
        yield {"n": 1}
        raise RuntimeError("out of words")

    with pytest.raises(RuntimeError, match="out of words"):
        cache_module._write_rows(cache / "rows.jsonl", broken())
    assert list(cache.iterdir()) == []


def build(directory, text="weights"):
    built = building_directory(directory)
    (built / "model.safetensors").write_text(text)
    return built


def test_base_model_is_published_whole():
    place = base_directory(0)
    assert place != base_directory(1)
    assert place != base_directory(0, {"lr": 1})
    assert place == base_directory(0, {})
    assert not is_complete(place)
    built = build(place)
    assert built.parent == place.parent
    assert not is_complete(built)  # not before it is published
    assert publish(built, place) == place
    assert is_complete(place)
    assert (place / "model.safetensors").read_text() == "weights"
    assert not built.exists()


def test_the_first_base_model_stays():
    place = base_directory(0)
    publish(build(place, "first"), place)
    second = build(place, "second")
    publish(second, place)
    assert (place / "model.safetensors").read_text() == "first"
    assert not second.exists()


@pytest.mark.parametrize("damage", ["truncate", "delete", "no marker", "broken marker"])
def test_a_half_base_model_is_never_used_and_is_replaced(damage):
    place = publish(build(base_directory(0), "whole"), base_directory(0))
    weights, marker = place / "model.safetensors", place / "complete.json"
    {
        "truncate": lambda: weights.write_text("wh"),
        "delete": weights.unlink,
        "no marker": marker.unlink,
        "broken marker": lambda: marker.write_text("[1"),
    }[damage]()
    assert not is_complete(place)
    publish(build(place, "again"), place)
    assert is_complete(place)
    assert weights.read_text() == "again"
