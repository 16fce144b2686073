"""The export, read back by plain transformers."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.callbacks.tiny_llama import (
    END,
    EOS,
    STALE_TEMPLATE,
    TRAINED_TEMPLATE,
    WORDS,
    edit,
    teach_to_stop,
    write_base,
)
from tests.export.stand_ins import load, shake, stored
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, ExportHuggingFace
from ts2_lightning.export import ExportSettings, export_model
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.types import UserError

MESSAGES = [{"role": "user", "content": "name a fruit"}]


def export(model: PreTrainedModel, out: Path, base: Path, **settings: Any) -> Path:
    defaults: dict[str, Any] = {
        "tokenizer_source": base, "chat_template": TRAINED_TEMPLATE, "end_of_turn_ids": [END],
    }  # fmt: skip
    return export_model(model, out, ExportSettings(**{**defaults, **settings}))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.parametrize("tied", [False, True])
def test_same_logits(tmp_path: Path, tied: bool) -> None:
    base = write_base(tmp_path / "base", tied=tied)
    model = load(base)
    shake(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    out = export(model, tmp_path / "export", base)
    ids = torch.arange(12)[None]
    assert torch.equal(load(out)(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not torch.allclose(load(base)(input_ids=ids).logits, model(input_ids=ids).logits)
    assert ("lm_head.weight" in stored(out)) is not tied
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.dtype == torch.float32
    assert model.generation_config.eos_token_id == EOS


def test_template_is_found_and_generation_stops(tmp_path: Path, base: Path) -> None:
    model = load(base)
    pear = WORDS.index("pear")
    teach_to_stop(model, after=pear)
    out = export(model, tmp_path / "export", base)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == TRAINED_TEMPLATE
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    text = "<s> <|user|> name a fruit <|end|> <|assistant|>"
    assert prompt["input_ids"][0].tolist() == [WORDS.index(word) for word in text.split()]
    answer = load(out).generate(**prompt, max_new_tokens=10)[0, prompt["input_ids"].shape[1] :]
    assert answer.tolist() == [pear, END]
    # The same weights with the base's own settings do not stop at the closing token.
    shutil.copy(base / "generation_config.json", out / "generation_config.json")
    answer = load(out).generate(**prompt, max_new_tokens=10)[0, prompt["input_ids"].shape[1] :]
    assert len(answer) == 10


def test_tokenizer_files_are_the_sources_own(tmp_path: Path, base: Path) -> None:
    config = read(base / "tokenizer_config.json")
    assert config.pop("chat_template") == STALE_TEMPLATE
    (base / "tokenizer_config.json").write_text(json.dumps(config, indent=5, sort_keys=True))
    (base / "tokenizer.model").write_bytes(b"\x00pieces")
    (base / "training_args.bin").write_bytes(b"not a tokenizer's")
    out = export(load(base), tmp_path / "export", base)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert (out / "chat_template.jinja").read_text() == TRAINED_TEMPLATE
    assert sorted(os.listdir(out)) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip


def test_no_stale_template_is_left(tmp_path: Path, base: Path) -> None:
    (base / "chat_template.jinja").write_text(STALE_TEMPLATE)
    out = export(load(base), tmp_path / "export", base)
    assert (out / "chat_template.jinja").read_text() == TRAINED_TEMPLATE
    assert read(out / "tokenizer_config.json")["chat_template"] == TRAINED_TEMPLATE
    kept = export(load(base), tmp_path / "kept", base, chat_template=None)
    assert AutoTokenizer.from_pretrained(kept).chat_template == STALE_TEMPLATE


def test_tokenizer_class_that_others_refuse(tmp_path: Path, base: Path) -> None:
    edit(base / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    out = export(load(base), tmp_path / "export", base)
    assert read(out / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|end|>") == END


def test_tokenizer_of_another_directory(tmp_path: Path, base: Path) -> None:
    other = tmp_path / "instruct"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).rename(other / name)
    out = export(load(base), tmp_path / "export", base, tokenizer_source=other)
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("pear") == WORDS.index("pear")
    with pytest.raises(UserError, match=r"no tokenizer files in .*base"):
        export(load(base), tmp_path / "export2", base)
    assert not (tmp_path / "export2").exists()


def test_config_is_the_bases(tmp_path: Path, base: Path) -> None:
    edit(base / "config.json", a_note_of_the_base=1, transformers_version="4.40.0")
    model = load(base)
    model.config.use_cache = False  # as gradient checkpointing leaves it
    out = export(model, tmp_path / "export", base)
    assert read(out / "config.json") == read(base / "config.json")
    settings = read(base / "generation_config.json")
    assert settings.pop("_from_model_config")  # would have it made anew from config.json
    assert read(out / "generation_config.json") == {
        **settings, "eos_token_id": [EOS, END],
    }  # fmt: skip


def test_config_of_a_changed_architecture(tmp_path: Path, base: Path) -> None:
    model = load(base)
    model.resize_token_embeddings(20)
    out = export(model, tmp_path / "export", base)
    assert read(out / "config.json") == {**read(base / "config.json"), "vocab_size": 20}
    assert load(out).lm_head.weight.shape == (20, 16)


@pytest.mark.parametrize(
    ("on_disk", "asked", "expected"),
    [("bfloat16", None, "bfloat16"), ("float32", None, "float32"), ("float32", "bfloat16", "bfloat16"),
     ("bfloat16", "float32", "float32")],
)  # fmt: skip
def test_dtype(tmp_path: Path, on_disk: str, asked: str | None, expected: str) -> None:
    base = write_base(tmp_path / "base", dtype=on_disk, tied=True)
    model = load(base)  # float32 masters
    shake(model)
    out = export(model, tmp_path / "export", base, dtype=asked)
    kind = getattr(torch, expected)
    tensors = stored(out)
    assert {tensor.dtype for tensor in tensors.values()} == {kind}
    assert torch.equal(tensors["model.norm.weight"], model.model.norm.weight.to(kind))
    assert "lm_head.weight" not in tensors
    assert read(out / "config.json")["dtype"] == expected
    assert AutoModelForCausalLM.from_pretrained(out).dtype == kind


def test_old_name_of_the_dtype(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype="bfloat16")
    config = read(base / "config.json")
    config["torch_dtype"] = config.pop("dtype")
    (base / "config.json").write_text(json.dumps(config))
    out = export(load(base), tmp_path / "export", base)
    assert stored(out)["model.norm.weight"].dtype == torch.bfloat16
    assert "torch_dtype" not in read(out / "config.json")


def test_generation_settings_without_a_base_file(tmp_path: Path, base: Path) -> None:
    (base / "generation_config.json").unlink()
    out = export(load(base), tmp_path / "export", base, end_of_turn_ids=[EOS])
    assert read(out / "generation_config.json")["eos_token_id"] == EOS


def test_failed_export_keeps_the_earlier_one(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(load(base), tmp_path / "export", base)
    first = {name: (out / name).read_bytes() for name in os.listdir(out)}

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ts2_lightning.export.export.copy_tokenizer", full)
    model = load(base)
    shake(model)
    with pytest.raises(UserError, match="no space left on the disk; the earlier export there is kept"):
        export(model, out, base)
    assert {name: (out / name).read_bytes() for name in os.listdir(out)} == first
    assert sorted(os.listdir(tmp_path)) == ["base", "export"]
    monkeypatch.undo()
    export(model, out, base)
    assert (out / "model.safetensors").read_bytes() != first["model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == ["base", "export"]


def test_interrupt_between_the_renames_brings_the_earlier_one_back(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(load(base), tmp_path / "export", base)
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == ".export.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(load(base), out, base)
    assert sorted(os.listdir(tmp_path)) == ["base", "export"]
    load(out)


def test_refuses_to_replace_what_is_no_export(tmp_path: Path, base: Path) -> None:
    model = load(base)
    with pytest.raises(UserError, match="is the model's own source"):
        export(model, base, base)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds something that is not an export \(thesis.tex\)"):
        export(model, home, base)
    with pytest.raises(UserError, match="is a file"):
        export(model, home / "thesis.tex", base)
    with pytest.raises(UserError, match=r"dtype must be null or one of .*, got 'fp8'"):
        export(model, tmp_path / "export", base, dtype="fp8")
    assert sorted(os.listdir(tmp_path)) == ["base", "home"]


def test_pretrained_model(tmp_path: Path, shared_data: Path) -> None:
    """A real tokenizer and tied weights; its base settings end at two tokens already."""
    base = shared_data / "models" / "stories260K"
    model = load(base)
    shake(model)
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    out = export(model, tmp_path / "export", base, chat_template=template, end_of_turn_ids=[2])
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("Once upon a time, there was a little girl", return_tensors="pt")["input_ids"]
    assert torch.equal(load(out)(input_ids=ids).logits, model(input_ids=ids).logits)
    assert "lm_head.weight" not in stored(out)
    assert read(out / "generation_config.json")["eos_token_id"] == [1, 2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "<s>Hi</s>"
    assert (out / "tok512.model").read_bytes() == (base / "tok512.model").read_bytes()


def test_tokenizer_from_the_hubs_cache(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, the files that an earlier download left are found."""
    snapshot = tmp_path / "hub" / "models--lab--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(base, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out = export(load(base), tmp_path / "export", base, tokenizer_source="lab/tiny")
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="cannot find the tokenizer files of 'lab/other'"):
        export(load(base), tmp_path / "export2", base, tokenizer_source="lab/other")


class Tuner(Publisher):
    """Holds a transformers model where the real module does, and adds one to a norm at every step."""

    def __init__(self, base: Path, losses: tuple[float, ...] = ()) -> None:
        super().__init__(losses)
        self.lm = LanguageModelConfig(str(base))
        self.network = torch.nn.ModuleDict({"language_model": load(base)})

    @property
    def language_model(self) -> Any:
        return self.network["language_model"]

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            self.language_model.model.norm.weight += 1


class Data(LightningDataModule):
    """What the export asks of the data module."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.template = SimpleNamespace(jinja=TRAINED_TEMPLATE, end_of_turn_ids=[END])

    def train_dataloader(self) -> Any:
        return loader(make_rows([1, 1]))

    def val_dataloader(self) -> Any:
        return loader(make_rows([1]))


def fit(tmp_path: Path, base: Path, callback: ExportHuggingFace, *losses: float, **settings: Any) -> None:
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = make_trainer(tmp_path, callbacks=[callback, Checkpoints()], max_epochs=len(losses), **settings)
    trainer.fit(Tuner(base, losses), datamodule=Data(base), ckpt_path=ckpt_path)


def test_tokenizer_without_files(tmp_path: Path, base: Path) -> None:
    """A tokenizer that was built and not loaded; transformers 5 would save it under a class of its own."""
    data = Data(base)
    data.tokenizer.name_or_path = ""
    (base / "tokenizer.json").unlink()
    trainer = make_trainer(tmp_path, callbacks=[ExportHuggingFace()], limit_val_batches=0)
    trainer.fit(Tuner(base), datamodule=data)
    out = tmp_path / "export"
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|end|>") == END
    assert read(out / "tokenizer_config.json")["tokenizer_class"] != "TokenizersBackend"
    assert (out / "chat_template.jinja").read_text() == TRAINED_TEMPLATE


@pytest.mark.parametrize(("which", "norm"), [("last", 6.0), ("best", 4.0)])
def test_callback(tmp_path: Path, base: Path, which: Any, norm: float) -> None:
    """The norm's weights begin at 1 and gain 2 per epoch; the second of three epochs is the best."""
    fit(tmp_path / "run", base, ExportHuggingFace(which=which), 3.0, 1.0, 2.0)
    out = tmp_path / "run" / "export"
    assert stored(out)["model.norm.weight"].tolist() == [1 + norm] * 16
    assert read(out / "generation_config.json")["eos_token_id"] == [EOS, END]
    assert AutoTokenizer.from_pretrained(out).chat_template == TRAINED_TEMPLATE


def test_best_without_validation_is_last(tmp_path: Path, base: Path) -> None:
    fit(tmp_path / "run", base, ExportHuggingFace(which="best"), 1.0, limit_val_batches=0)
    assert stored(tmp_path / "run/export")["model.norm.weight"][0] == 3


def test_finished_run_exports_when_resumed(tmp_path: Path, base: Path) -> None:
    """A job that was killed within its export makes it when it is started again."""
    out = tmp_path / "export"
    fit(tmp_path / "run", base, ExportHuggingFace(str(out)), 1.0)
    shutil.rmtree(out)
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    fit(tmp_path / "run", base, ExportHuggingFace(str(out)), 1.0, ckpt_path=last)
    assert stored(out)["model.norm.weight"][0] == 3


def test_sharded_weights_come_from_the_checkpoint(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rank 0 does where it has but a part of the weights; `tests/e2e` does it with two ranks."""
    monkeypatch.setattr("ts2_lightning.callbacks.export_huggingface.is_sharded", lambda parameter: True)
    fit(tmp_path / "run", base, ExportHuggingFace(), 1.0, 2.0)
    assert stored(tmp_path / "run/export")["model.norm.weight"][0] == 5
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    fit(tmp_path / "other", base, ExportHuggingFace(), 1.0, 2.0, ckpt_path=last)  # it was over: nothing is written
    assert stored(tmp_path / "other/export")["model.norm.weight"][0] == 5
    trainer = make_trainer(tmp_path / "bare", callbacks=[ExportHuggingFace()], max_epochs=1)
    with pytest.raises(UserError, match="no checkpoint of the last step"):
        trainer.fit(Tuner(base, (1.0,)), datamodule=Data(base))
    assert not (tmp_path / "bare" / "export").exists()


def test_interrupted_fit_exports_nothing(tmp_path: Path, base: Path) -> None:
    module = Tuner(base, (1.0,))
    module.on_validation_start = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    trainer = make_trainer(tmp_path, callbacks=[ExportHuggingFace()])
    with pytest.raises(SystemExit):
        trainer.fit(module, datamodule=Data(base))
    fit(tmp_path / "dev", base, ExportHuggingFace(), 1.0, fast_dev_run=True)
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "dev" / "export").exists()


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match=r"which.* must be last or best, got 'first'"):
        ExportHuggingFace(which="first")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"dtype.* must be null or one of .*, got 'int8'"):
        ExportHuggingFace(dtype="int8")
