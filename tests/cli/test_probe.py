"""`probe`: directories, runs and checkpoints in; numbers, pictures and one line of what is wrong out."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.callbacks.tiny_llama import END, TRAINED_TEMPLATE, write_base
from tests.cli.conftest import Run
from tests.cli.test_export import write_run
from tests.export.stand_ins import load, shake
from ts2_lightning.data import SFTData
from ts2_lightning.evaluation import Model, Question
from ts2_lightning.evaluation.model import ValidationBatches
from ts2_lightning.evaluation.probes import macro
from ts2_lightning.toyworld import build_tokenizer, load_world, model_config
from ts2_lightning.toyworld.domain import text_template
from ts2_lightning.toyworld.exact import encode_exchange

FEW = ("--limit", "3", "--max_new_tokens", "4")
TOYS = ("--model", "A=a", "--model", "B=b")


@pytest.fixture
def toys(here: Path) -> Path:
    """Two tiny models of the toy world, a prompt file and a file of rows."""
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        settings = {**model_config().to_dict(), "hidden_size": 16, "intermediate_size": 16, "head_dim": 4}
        LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(here / name)
        build_tokenizer().save_pretrained(here / name)
    world = load_world()
    requests = [family.held_out[0] for family in world.seen[:4]]
    (here / "prompts.jsonl").write_text("".join(json.dumps({"prompt": request}) + "\n" for request in requests))
    rows = [{"prompt": f.held_out[0], "completion": world.response(a)} for f in world.seen[:2] for a in f.taught]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return here


def numbers(name: str) -> dict:
    return json.loads(Path(f"out/{name}.json").read_text())


def test_all_probes_of_two_directories(toys: Path, ts2: Run) -> None:
    files = ("--prompts", "prompts.jsonl", "--rows", "rows.jsonl")
    answer = ts2("probe", "all", *TOYS, "--model", "B2=b:sparsemax", *files, *FEW, "--out", "out")
    assert (answer.status, answer.err.count("error")) == (0, 0)
    assert "Sampling, A" in answer.err  # progress
    stems = ["micro-1", "micro-2", "micro-3", "macro", "tail", "tspd-grid", "tspd-scatter", "tspd-support"]
    expected = {f"{s}.{e}" for s in stems for e in ("png", "svg")} | {
        f"{p}.json" for p in ("micro", "macro", "tail", "tspd")
    }
    assert set(os.listdir("out")) == expected | {"report.md", "report.html"}
    assert "report: out/report.md" in answer.out
    assert "page: out/report.html" in answer.out
    page = Path("out/report.html").read_text()
    for numbers_of_model in numbers("tail")["models"].values():
        assert f'data-n="{numbers_of_model["top1"]!r}"' in page
    assert page.count('class="explorer"') == 1
    assert '"name":"response of B2 (sparsemax)"' in page
    for name in ("micro", "macro", "tail", "tspd"):
        assert list(numbers(name)["models"]) == ["A", "B", "B2 (sparsemax)"]
    b, again = (numbers("tail")["models"][name] for name in ("B", "B2 (sparsemax)"))
    assert b == again  # the tail is the softmax's, however the model is decoded
    b, again = (numbers("macro")["models"][name] for name in ("B", "B2 (sparsemax)"))
    assert len(b["tokens"]) == 3
    assert b["mean"] < again["mean"]  # a flat model: sparsemax takes the tail's mass
    questions = numbers("micro")["models"]["A"]["questions"]  # the world's own, whose answers are known
    assert questions[0]["request"] in load_world().family("digit").held_out
    assert [len(question["taught"]) for question in questions] == [1, 2, 3]
    assert all(question["implausible_mass"] > 0.9 for question in questions)
    assert numbers("macro")["settings"]["prompts"] == "prompts.jsonl"


def test_defaults_of_the_toy_world(toys: Path, ts2: Run) -> None:
    assert ts2("probe", "tail", *TOYS, "--limit", "5", "--out", "out").status == 0
    assert numbers("tail")["settings"]["rows"] == "toyworld:test"
    assert numbers("tail")["models"]["A"]["rows"] == 5


def test_first_token_at_given_prompts(toys: Path, ts2: Run) -> None:
    given = ("--prompts", "prompts.jsonl", "--opening", "the answer")
    assert ts2("probe", "micro", *TOYS, *given, "--out", "out").status == 0
    questions = numbers("micro")["models"]["B"]["questions"]
    assert [q["request"] for q in questions] == [f.held_out[0] for f in load_world().seen[:4]]
    model = AutoModelForCausalLM.from_pretrained("b").eval()
    world, tokenizer = load_world(), build_tokenizer()
    exchange = encode_exchange(tokenizer, world, questions[2]["request"], next(iter(world.seen[2].answers)))
    ids = exchange.prompt + exchange.response[:2]  # "the answer"
    expected = model(torch.tensor([ids])).logits[0, -1].softmax(-1).sort(descending=True).values
    assert questions[2]["probabilities"][:20] == pytest.approx(expected[:20].tolist(), abs=1e-6)


def test_a_run_and_its_checkpoint(here: Path, ts2: Run) -> None:
    """A checkpoint is exported with the run's template first; a run's export is taken as it is."""
    base = write_base(here / "base")
    (here / "chat.jinja").write_text(TRAINED_TEMPLATE)
    (here / "rows.jsonl").write_text(
        json.dumps({"prompt": "name a fruit", "completion": "the answer is pear ."}) + "\n"
    )
    model = load(base)
    shake(model)
    run = write_run(here / "runs" / "chat" / "1", model, {"path": "base"})
    models = ("--model", "file=runs/chat/1/checkpoints/last.ckpt", "--model", "run=runs/chat/1")
    answer = ts2("probe", "tail", *models, "--rows", "rows.jsonl", "--out", "out")
    assert (answer.status, answer.err.count("error")) == (0, 0)
    found = numbers("tail")["models"]
    assert found["file"] == found["run"]
    assert found["file"]["tokens"] == 6  # the answer's words and the closing token of the trained template
    ids = [0, *(3, 6, 7, 8, 5), 4, *range(9, 14), END]
    z = model(torch.tensor([ids])).logits[0, 6:-1].detach()
    assert found["file"]["top1/of_tokens"] == pytest.approx(float(z.softmax(-1).amax(-1).mean()), abs=1e-5)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(base, run / "export")
    plain = ("--template", "run=chat.jinja")
    assert (
        ts2("probe", "tail", "--model", "run=runs/chat/1", *plain, "--rows", "rows.jsonl", "--out", "out").status == 0
    )
    assert numbers("tail")["models"]["run"]["top1"] != pytest.approx(found["run"]["top1"], abs=1e-6)


def test_one_model_with_another_vocabulary(toys: Path, ts2: Run) -> None:
    write_base(toys / "other")
    (toys / "chat.jinja").write_text(TRAINED_TEMPLATE)
    models = (*TOYS, "--model", "C=other", "--template", "C=chat.jinja")
    rows = ("--rows", "rows.jsonl", "--prompts", "prompts.jsonl")
    answer = ts2("probe", "micro", *models, "--out", "out")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith(
        "error: micro: compares models token by token, but A and C have different vocabularies"
    )
    answer = ts2("probe", "all", *models, *rows, *FEW, "--out", "out")
    assert answer.status == 0
    assert "left out micro: compares models token by token" in answer.err
    assert sorted(p.name for p in Path("out").glob("*.json")) == ["macro.json", "tail.json", "tspd.json"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["tail", "--model", "A=./c"], "--model A=./c: no such model"),
        (["tail", "--model", "A=./bb"], "did you mean"),
        (["tail", "--model", "A=empty"], "--model A=empty: neither a transformers directory"),
        (["tail", "--model", "A=a:sparsmax"], "no decoding 'sparsmax'; did you mean sparsemax?"),
        (["tail", "--model", "a"], "--model a: write NAME=DIRECTORY"),
        (["tail", *TOYS, "--model", "A=b"], "--model A: two models of that name"),
        (["tail", *TOYS, "--template", "Z=plain"], "--template Z=plain: no model of that name"),
        (["tail", *TOYS, "--template", "A=plane"], "--model A=a: "),
        (["macro", *TOYS, "--prompts", "no.jsonl"], "error: --prompts: no file no.jsonl"),
        (["micro", *TOYS, "--prompts", "no.jsonl"], "error: --prompts: no file no.jsonl"),
        (["micro", *TOYS, "--prompts", "strange.jsonl"], "error: --prompts strange.jsonl:1: no format fits"),
        (["tail", *TOYS, "--rows", "no.jsonl"], "error: --rows: no file no.jsonl"),
        (["tail", *TOYS, "--rows", "toyworld:tets"], "error: --rows: data source 'toyworld:tets': "),
        (["tail", "--model", "A=untokenised"], "error: --model A=untokenised: cannot load 'untokenised'"),
        (["macro", *TOYS, "--prompts", "broken.jsonl"], "--prompts broken.jsonl:2: malformed JSON"),
        (["macro", *TOYS, "--prompts", "answer.jsonl"], "--prompts answer.jsonl:1: nothing comes before"),
        (["macro", *TOYS, "--prompts", "strange.jsonl"], "--prompts strange.jsonl:1: no format fits"),
        (["macro", *TOYS, "--prompts", "blank.jsonl"], "--prompts: no prompts in blank.jsonl"),
        (["macro", *TOYS, "--temperature", "-1"], "temperature"),
        (["tail", *TOYS, "--rows", "broken.jsonl"], "--rows broken.jsonl:1: "),
        (["tail", *TOYS, "--rows", "blank.jsonl"], "--rows: no rows in blank.jsonl"),
        (["tail", *TOYS, "--prompts", "no.jsonl"], "--prompts no.jsonl: tail does not read it; leave it out"),
        (["micro", *TOYS, "--rows", "rows.jsonl"], "--rows rows.jsonl: micro does not read it; leave it out"),
        (["tail", *TOYS, "--limit", "0"], "--limit must be a whole number of at least 1, got 0"),
        (["tail", *TOYS, "--device", "gpu"], "--device gpu: "),
        (["tail", *TOYS, "--out", "rows.jsonl"], "--out rows.jsonl: "),
        (
            ["tails", *TOYS],
            "macro, tail, tspd, all, got 'tails'; did you mean tail?",
        ),
        (["tail"], "probe: the following arguments are required: --model"),
    ],
)
def test_one_line_says_what_is_wrong(toys: Path, ts2: Run, options: list[str], said: str) -> None:
    (toys / "empty").mkdir()
    (toys / "untokenised").mkdir()
    (toys / "untokenised" / "config.json").write_text("{}")
    (toys / "broken.jsonl").write_text('{"prompt": "name a fruit"}\n{"prompt": \n')
    (toys / "answer.jsonl").write_text('{"messages": [{"role": "assistant", "content": "plum"}]}\n')
    (toys / "strange.jsonl").write_text('{"text": 3}\n')
    (toys / "blank.jsonl").write_text("\n")
    before = sorted(os.listdir())
    answer = ts2("probe", *options, *([] if "--out" in options else ["--out", "out"]))
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert said in answer.err
    assert sorted(os.listdir()) == before


def test_other_models_need_files(here: Path, ts2: Run) -> None:
    write_base(here / "base")
    for probe, option in (("macro", "--prompts"), ("tspd", "--rows")):
        answer = ts2("probe", probe, "--model", "A=base", "--template", "A=plain", "--out", "out")
        assert (answer.status, answer.err.count("\n")) == (2, 1)
        assert answer.err.startswith(f"error: {option}: none given; name a file for {probe}")


def test_a_killed_probe_goes_on_with_the_next_model(toys: Path, ts2: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    whole = macro.measure

    def measure(model, *settings):
        if len(measured) == 1 and model.title == "B":
            measured.append("killed")
            raise KeyboardInterrupt
        measured.append(model.title)
        return whole(model, *settings)

    monkeypatch.setattr(macro, "measure", measure)
    macros = ("probe", "macro", *TOYS, "--prompts", "prompts.jsonl", *FEW, "--out", "out")
    assert ts2(*macros).status == 130
    assert [path.name for path in Path("out").iterdir()] == [".parts"]
    assert ts2(*macros).status == 0
    assert measured == ["A", "killed", "B"]
    assert not Path("out/.parts").exists()
    assert ts2(*macros).status == 0  # done: everything is measured anew
    assert measured[3:] == ["A", "B"]


def test_rows_have_the_tokens_that_are_trained(toys: Path) -> None:
    """The very batches that the datamodule makes of the same file."""
    data = SFTData(predict="rows.jsonl", tokenizer="a", micro_batch_size=2, cache=False)
    data.setup("predict")
    model = Model("a", [], lambda: "a", toys / "out")
    rows = model.read_rows("--rows", model.validation_data("--rows", "rows.jsonl", eval_batch_size=2, cache=False))
    for ours, theirs in zip(ValidationBatches(rows), data.predict_dataloader(), strict=True):
        assert set(ours) == set(theirs)
        for name in ("supervised", "labels", "token_rows", "row_index", "attention_mask"):
            assert torch.equal(ours[name], theirs[name])
        mask = ours["attention_mask"] == 1
        assert torch.equal(ours["input_ids"][mask], theirs["input_ids"][mask])


def test_the_base_is_asked_in_sentences_of_its_pretraining() -> None:
    world, tokenizer = load_world(), build_tokenizer()
    template = text_template(tokenizer)
    family = world.seen[0]
    exchange = encode_exchange(tokenizer, world, family.held_out[0], next(iter(family.answers)), style="text")
    prompt = Question.asking(family.held_out[0]).encode(template, world.opening)
    assert prompt.ids == exchange.prompt
    assert template.end_of_turn_ids == (tokenizer.bos_token_id,)


def test_a_real_model(here: Path, ts2: Run, shared_data: Path) -> None:
    """stories260K, which has no chat template: the papers' question, with subword tokens."""
    model = ("--model", f"stories={shared_data / 'models' / 'stories260K'}")
    files = ("--prompts", str(shared_data / "eval" / "tofu_short_stories.jsonl"))
    rows = ("--rows", str(shared_data / "sft" / "alpaca_5000.jsonl.gz"), "--max_length", "256", "--limit", "4")
    more = ("--queries", "8", "--max_new_tokens", "24")
    answer = ts2("probe", "all", *model, *files, *rows, *more, "--out", "out")
    assert (answer.status, answer.err.count("error")) == (0, 0)
    assert 0 < numbers("macro")["models"]["stories"]["mean"] < 1
    assert numbers("tail")["models"]["stories"]["rows"] == 4
    [question] = numbers("micro")["models"]["stories"]["questions"]
    assert question["first_token"] is False
