"""`export --push`: what is sent to the hub, to a stand-in of it, and what is said where that cannot be."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import _http

from tests.callbacks.tiny_llama import write_base
from tests.cli.conftest import Run
from tests.cli.test_export import write_run
from tests.export.stand_ins import load, shake
from tests.support.errors import refused
from tests.support.hub_server import READ, WRITE, StandInHub, Stored
from ts2_lightning.export.hub import check_texts
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model

EXPORT = ("export", "--ckpt", "last", "--name", "chat", "--out", "out")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    """A hub that the library takes for the real one, by plain uploads; nobody waits before trying again."""
    with StandInHub() as server:
        for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield server


@pytest.fixture
def run(here: Path) -> Path:
    """A run as `fit` leaves it: a tiny model, trained a little."""
    base = write_base(here / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    model = load(base)
    shake(model)
    return write_run(here / "runs" / "chat" / "1", model, {"path": "base"})


def contents(directory: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(directory).iterdir()}


@pytest.mark.usefixtures("run")
def test_nothing_is_pushed_unasked(ts2: Run, hub: StandInHub) -> None:
    ts2(*EXPORT).done()
    assert hub.calls == []
    assert "--public: is for --push NAME" in ts2(*EXPORT, "--public").complaint
    assert "--push-update: is for --push NAME" in ts2(*EXPORT, "--push-update").complaint
    assert hub.calls == []


@pytest.mark.usefixtures("run")
def test_it_is_private_and_whole(ts2: Run, hub: StandInHub) -> None:
    answer = ts2(*EXPORT, "--push", "pears").done()
    assert answer.out.splitlines()[-1] == f"Pushed to {hub.url}/me/pears (private)"
    stored = hub.repositories["me/pears"]
    assert (stored.private, stored.commits) == (True, 1)
    assert {name: stored.files[name] for name in stored.files if name != ".gitattributes"} == contents("out")
    card = ModelCard(stored.files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert 'pipeline("text-generation", model="me/pears")' in card.text
    assert WRITE not in answer.out + answer.err


@pytest.mark.usefixtures("run")
def test_public_only_if_so_asked(ts2: Run, hub: StandInHub) -> None:
    assert ts2(*EXPORT, "--push", "lab/pears", "--public").done().out.endswith("/lab/pears (public)\n")
    assert not hub.repositories["lab/pears"].private
    said = ts2(*EXPORT, "--push", "lab/pears", "--push-update").complaint
    assert said == "--push lab/pears: lab/pears is there and public: add --public, or another name"
    hub.repositories["me/plums"] = Stored(private=True)
    assert "leave --public out" in ts2(*EXPORT, "--push", "plums", "--public").complaint


def no_token(patch: pytest.MonkeyPatch, hub: StandInHub) -> None:
    patch.delenv("HF_TOKEN")


def token(value: str) -> Callable[[pytest.MonkeyPatch, StandInHub], None]:
    return lambda patch, hub: patch.setenv("HF_TOKEN", value)


def offline(patch: pytest.MonkeyPatch, hub: StandInHub) -> None:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def taken(patch: pytest.MonkeyPatch, hub: StandInHub) -> None:
    hub.repositories["me/pears"] = Stored(True, {"README.md": b"mine", ".gitattributes": b""})


def unplugged(patch: pytest.MonkeyPatch, hub: StandInHub) -> None:
    hub.unplugged_at = "whoami"


BEFORE = [
    (no_token, "pears", "--push pears: nobody is logged in: `hf auth login`, or set HF_TOKEN"),
    (
        token("hf_wrong"),
        "pears",
        "--push pears: the hub does not accept the token (HF_TOKEN, or that of `hf auth login`",
    ),
    (token(READ), "pears", "--push pears: the token of me can only read; log in with one that can write"),
    (offline, "pears", "--push pears: HF_HUB_OFFLINE is set, so the hub is not asked"),
    (taken, "pears", "--push pears: me/pears is there, with 1 files; add --push-update to put this export on top"),
    (unplugged, "pears", "--push pears: the hub was not reached, or left off (Server disconnected"),
    (token(WRITE), "a/b/c", "--push a/b/c: no name for a repository: "),
]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(("prepare", "name", "said"), BEFORE, ids=[said for _, _, said in BEFORE])
def test_what_speaks_against_it_is_told_before_anything_is_made(
    ts2: Run, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, prepare: Any, name: str, said: str
) -> None:
    prepare(monkeypatch, hub)
    answer = ts2(*EXPORT, "--push", name)
    assert answer.complaint.startswith(said)
    assert not Path("out").exists()
    assert "hf_" not in answer.err
    assert not any(call.startswith(("PUT", "POST")) for call in hub.calls)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("unplugged_at", ["PUT /objects", "POST /.*batch", "POST /.*/commit", "POST /.*create"])
def test_the_network_goes_half_way(ts2: Run, hub: StandInHub, unplugged_at: str) -> None:
    """The export stays, and the same command goes on."""
    hub.unplugged_at = unplugged_at
    said = ts2(*EXPORT, "--push", "pears").complaint
    assert said.startswith("--push me/pears: the hub was not reached, or left off (")
    assert said.endswith("; out is whole: give the same command again")
    assert load(Path("out")) is not None
    hub.unplugged_at = None
    ts2(*EXPORT, "--push", "pears").done()
    stored = hub.repositories["me/pears"]
    assert {name: stored.files[name] for name in stored.files if name != ".gitattributes"} == contents("out")


@pytest.mark.usefixtures("run")
def test_no_right_to_write_there(ts2: Run, hub: StandInHub) -> None:
    said = ts2(*EXPORT, "--push", "others/pears").complaint
    assert said.startswith("--push others/pears: the token has no right to write there (")
    assert "out is whole" in said
    assert Path("out/model.safetensors").is_file()


@pytest.mark.usefixtures("run")
def test_a_licence_that_the_hub_does_not_take(ts2: Run, hub: StandInHub) -> None:
    Path("base/README.md").write_text("---\nlicense: MY OWN\n---\n")
    said = ts2(*EXPORT, "--push", "pears").complaint
    assert said.startswith("--push me/pears: ")
    assert '"license" must be one of' in said


@pytest.mark.usefixtures("run")
def test_an_update_is_a_commit_and_leaves_no_file_that_would_be_read_too(ts2: Run, hub: StandInHub) -> None:
    before = {"model-00002-of-00002.safetensors": b"", "notes.txt": b"mine", ".gitattributes": b""}
    hub.repositories["me/pears"] = Stored(True, before)
    ts2(*EXPORT, "--push", "pears", "--push-update").done()
    files = hub.repositories["me/pears"].files
    assert set(files) == {*contents("out"), "notes.txt", ".gitattributes"}


def test_an_adapter_names_a_base_that_others_have(ts2: Run, hub: StandInHub, run: Path, here: Path) -> None:
    adapter: dict[str, Any] = {"r": 4, "alpha": 8, "target_modules": ["q_proj"]}
    model = load_language_model(LanguageModelConfig("base", adapter=AdapterConfig(**adapter)))
    shake(model)
    write_run(here / "runs" / "lora" / "1", model, {"path": "base", "adapter": adapter})
    lora = ["export", "--ckpt", "last", "--name", "lora", "--out", "out", "--adapter", "separate", "--push", "pears"]
    assert "give its name on the hub with --base-name OWNER/NAME" in ts2(*lora).complaint
    assert "--base-name base: expected OWNER/NAME" in ts2(*lora, "--base-name", "base").complaint
    ts2(*lora, "--base-name", "fruit/base").done()
    files = hub.repositories["me/pears"].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "fruit/base"
    data = ModelCard(files["README.md"].decode()).data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["library_name"]) == ("fruit/base", "adapter", "peft")


def test_texts_that_are_not_for_others(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "out").mkdir()
    config = here / "out" / "config.json"
    for text, said in (
        (f"{{'path': '{here}/x'}}", f"config.json names a place of this machine ({here}/...)"),
        (f"{{'path': '{Path.home()}/x'}}", f"config.json names a place of this machine ({Path.home()}/...)"),
        (f"{{'key': '{WRITE}'}}", "config.json holds a token of the hub; take it out"),
    ):
        config.write_text(text)
        with refused(re.escape(said)):
            check_texts(here / "out")
    config.write_text("{'path': 'org/name', 'key': '/'}")
    check_texts(here / "out")
