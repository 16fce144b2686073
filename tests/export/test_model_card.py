"""The model card: valid for the hub, made from the run's records, and with nothing of the machine in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.callbacks.tiny_llama import write_base
from tests.export.stand_ins import load, settings
from tests.support.errors import refused
from ts2_lightning.export import export_model
from ts2_lightning.export.model_card import CardSubject, card_text, changed_card
from ts2_lightning.export.run_facts import RunFacts, read_facts
from ts2_lightning.runs.stamps import file_stamps

SECRETS = ("/home/anna", "node17", "hunter2", "anna", "key=")
CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "name": "pears",
    "runs_dir": "/home/anna/runs",
    "trainer": {
        "max_epochs": 2,
        "max_steps": -1,
        "gradient_clip_val": 1.0,
        "logger": {"class_path": "WandbLogger", "init_args": {"save_dir": "/home/anna/wandb", "api_key": "hunter2"}},
    },
    "model": {
        "lm": {
            "path": "/home/anna/models/base",
            "init": "pretrained",
            "adapter": {"r": 8, "target_modules": ["q_proj"]},
        },
        "loss": {
            "class_path": "ts2_lightning.losses.ReferenceAnchored",
            "init_args": {
                "loss": {"class_path": "ts2_lightning.losses.TS2Loss", "init_args": {"alpha": 0.25, "adaptive": False}},
                "weight": 0.1,
            },
        },
        "optimizer": {"lr": 2e-5, "betas": [0.9, 0.95]},
        "reference": {"path": "/home/anna/models/reference"},
    },
    "data": {
        "train": [
            "hub:fruit/chats",
            {"path": "/home/anna/rows.jsonl", "times": 2.0},
            "https://anna:hunter2@node17/more.jsonl?key=hunter2",
        ],
        "validation": {"chat": "/home/anna/a|b.jsonl", "math": "hub:fruit/sums"},
        "template": "/home/anna/chat.jinja",
        "batch_size": 128,
    },
}
DATA = {
    "tokenizer": "/home/anna/models/base",
    "splits": {
        "train": {"files": [{"path": "/home/anna/x"}], "kept": 12345, "supervised_tokens": 98765},
        "validation": {"files": [], "kept": 7, "supervised_tokens": 70},
    },
}
METRICS = """step,train/cross_entropy,train/tail_mass,val/cross_entropy,val/tail_mass
1,2.5,0.2,,
2,1.5,0.1,1.25,0.05
4,1.0,0.1,1.125,0.04
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    place = tmp_path / "runs" / "pears" / "1"
    (place / "csv").mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (place / "data.json").write_text(json.dumps(DATA))
    (place / "csv/metrics.csv").write_text(METRICS)
    about = {"host": "node17", "ts2_lightning": {"version": "0.2.0"}, "torch": {"version": "2.13"}, "packages": {}}
    (place / "environment.json").write_text(json.dumps(about))
    return place


@pytest.fixture
def base(tmp_path: Path) -> Path:
    place = write_base(tmp_path / "base")
    (place / "README.md").write_text("---\nlicense: other\nlicense_name: pear\nlicense_link: LICENSE\n---\n# Base\n")
    return place


def test_what_the_run_was(run: Path, base: Path) -> None:
    text = card_text(CardSubject(str(base), "fruit/base", facts=read_facts(run)), "training.png")
    data = ModelCard(text).data.to_dict()
    assert data["datasets"] == ["fruit/chats"]
    assert (data["base_model"], data["base_model_relation"]) == ("fruit/base", "finetune")
    assert (data["license"], data["license_name"]) == ("other", "pear")
    assert data["license_link"] == "https://huggingface.co/fruit/base/blob/main/LICENSE"
    assert data["tags"] == ["ts2_lightning", "sft", "reference-anchored"]
    assert "`ReferenceAnchored(loss=TS2Loss(alpha=0.25, adaptive=False), weight=0.1)`" in text
    assert "\n    L = " in text
    assert "| train | fruit/chats, rows.jsonl, more.jsonl | 12,345 | 98,765 |" in text
    assert "| validation | a\\|b.jsonl, fruit/sums | 7 | 70 |" in text
    for line in (
        "| learning rate | 2e-05 |",
        "| rows per step | 128 |",
        "| LoRA rank | 8 |",
        "| template | chat.jinja |",
    ):
        assert line in text
    assert "Validation after 4 optimizer steps.\n" in text
    assert "| CE | 1.125 | a supervised token, in nats |" in text
    assert "![Training and validation over the optimizer steps: pears](training.png)" in text
    assert "ts2_lightning 0.2.0, torch 2.13" in text


def test_nothing_of_the_machine_is_told(run: Path, base: Path) -> None:
    text = card_text(CardSubject(str(base), facts=read_facts(run)))
    assert [secret for secret in (*SECRETS, str(base.parent)) if secret in text] == []
    assert "base_model" not in ModelCard(text).data.to_dict(), "a directory is no name on the hub"
    assert "`base`" in text


def test_figures_are_those_of_the_weights(run: Path) -> None:
    """Of a checkpoint in between no later validation counts."""
    facts = read_facts(run, step=3)
    assert (facts.step, facts.figures[0].value) == (2, "1.250")
    assert read_facts(run, step=1).step is None
    text = card_text(CardSubject("fruit/base", facts=facts, origin={"toward_base": 0.7, "average_of": ["a", "b"]}))
    assert "Validation after 2 optimizer steps, of the weights of the run." in text
    assert "base + 0.7 (tuned - base)" in text
    assert "the mean of those of 2 checkpoints" in text


def test_records_that_are_not_as_they_should_be(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An export is not lost for its card."""
    (run / "csv/metrics.csv").write_text("step,a\n1,b\n")
    (run / "data.json").write_text("{")
    (run / "config.yaml").write_text("model: [1]\ndata: 3\n")
    facts = read_facts(run)
    assert (facts.objective, facts.splits, facts.figures) == ("", (), ())
    assert caplog.text.count("the model card says less than it might: ") == 2
    assert ModelCard(card_text(CardSubject(None, facts=facts))).data.tags == ["ts2_lightning", "sft"]


@pytest.mark.parametrize("name", ["MyLoss", "TS2Loss"])
def test_a_loss_of_another_package_is_named_and_not_imported(run: Path, name: str) -> None:
    """Nor is it taken for the one of this package that has its name."""
    changed = {**CONFIG, "model": {**CONFIG["model"], "loss": {"class_path": f"never_there.{name}"}}}
    (run / "config.yaml").write_text(yaml.safe_dump(changed))
    facts = read_facts(run)
    assert (facts.objective, facts.formula, facts.about) == (f"{name}()", "", "")


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (CardSubject(None), "The training began with random weights"),
        (CardSubject("no/such-base"), "No licence was found beside the base model"),
        (CardSubject("no/such-base", adapter=True), "transformers loads the base model below it. "),
        (CardSubject("no/such-base", repository="me/pears"), "# pears\n"),
        (CardSubject("no/such-base", chats=False), 'print(generate("...", max_new_tokens=256)'),
        (CardSubject("no/such-base", origin={"ema": True}), "exponential moving average"),
    ],
)
def test_what_else_a_reader_must_know(subject: CardSubject, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert said in card_text(subject)


def test_every_export_has_a_card(base: Path, tmp_path: Path, run: Path) -> None:
    out = tmp_path / "out"
    export_model(load(base), out, settings(base))
    text = (out / "README.md").read_text()
    assert ModelCard(text).data.license == "other"
    assert "The weights are float32." in text
    assert not (out / "training.png").exists()
    export_model(load(base), out, settings(base, run=run, repository="me/pears"))
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert '\ngenerate = pipeline("text-generation", model="me/pears")' in (out / "README.md").read_text()


def test_a_card_that_was_changed_is_kept(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    export_model(load(base), out, settings(base))
    assert changed_card(out) is None
    mine = (out / "README.md").read_text().replace("# ", "# My ")
    (out / "README.md").write_text(mine)
    export_model(load(base), out, settings(base))
    assert (out / "README.md").read_text() == mine
    assert "README.md was changed since it was written, and is kept" in caplog.text


def test_an_edited_card_makes_no_other_model(base: Path, tmp_path: Path, run: Path) -> None:
    """What was measured of a model stays measured; of another's README nothing is known, and it counts."""
    out = tmp_path / "out"
    export_model(load(base), out, settings(base, run=run))
    before = file_stamps(out)
    assert "model.safetensors" in [name for name, _, _ in before]
    (out / "README.md").write_text("# My " + (out / "README.md").read_text())
    assert file_stamps(out) == before
    assert "README.md" in [name for name, _, _ in file_stamps(base)]


def test_a_directory_with_nothing_but_a_readme_is_no_export(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("# Mine\n")
    with refused(r"holds something that is not an export \(README.md\)"):
        export_model(load(base), tmp_path / "out", settings(base))
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"


def test_no_facts_without_a_run() -> None:
    assert read_facts(None) == RunFacts()
