"""`measure`: runs, checkpoints and directories in; values beside them, each made once, out."""

import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from tests.callbacks.tiny_llama import write_base
from tests.e2e.command_line import QUICKSTART, Answer, CommandLine, empty_working_directory, make_blank
from ts2_lightning.cli import main
from ts2_lightning.evaluation import describe
from ts2_lightning.evaluation import model as model_file
from ts2_lightning.evaluation.loading import load_model
from ts2_lightning.evaluation.measures import diversity
from ts2_lightning.generation import Request, Response
from ts2_lightning.generation.backends import TransformersBackend
from ts2_lightning.generation.response_files import read_store
from ts2_lightning.metrics import functional
from ts2_lightning.toyworld import load_world
from ts2_lightning.toyworld.measure import evaluate_toyworld

RUN = Path("runs/toy/1")
FEW = {"limit": 6, "samples": 4, "max_new_tokens": 6, "batch_size": 8, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
SCALE = 3.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a run of a few steps on the toy world, two validation sets, and what `validate` says of it."""
    directory = tmp_path_factory.mktemp("trained")
    with empty_working_directory(directory, tmp_path_factory.mktemp("cache")):
        model = ("--model.lm.path", str(make_blank(directory / "blank")), "--model.lm.init", "random")
        options = (
            "-c", str(QUICKSTART), *model, "--name=toy", "--trainer.enable_progress_bar=false",
            "--model.loss=TS2Loss", f"--model.loss.logit_scale={SCALE}", "--model.optimizer.lr=3e-3",
            "--data.limit_train=160", "--data.limit_validation=120",
            "--data.validation.seen=toyworld:validation", "--data.validation.unseen=toyworld:test",
        )  # fmt: skip
        assert main(["fit", *options, "--trainer.max_epochs=2"]) == 0
        assert main(["validate", *options, "--ckpt_path", str(RUN / "checkpoints/last.ckpt")]) == 0
        shutil.rmtree(RUN / "tensorboard")
        yield directory


@pytest.fixture
def ts2(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommandLine]:
    """The command line in a directory with a copy of the run; files keep their times."""
    cache = os.environ["TS2_CACHE_DIR"]
    with empty_working_directory(tmp_path, Path(cache)):
        shutil.copytree(trained / "runs", "runs")
        yield CommandLine(capfd, trained / "blank")


def results(run: Path | str = RUN) -> dict[str, dict[str, Any]]:
    """File without its ending -> what it says."""
    found = {path.stem: json.loads(path.read_text()) for path in Path(run, "measures").glob("*.json")}
    assert all(document["name"] in name for name, document in found.items())
    return found


def values(run: Path | str = RUN) -> dict[str, float]:
    return {name: value for document in results(run).values() for name, value in document["values"].items()}


def measure(ts2: CommandLine, spec: dict[str, Any], *more: str, model: Path | str = RUN) -> Answer:
    answer = ts2("measure", str(model), "--spec", json.dumps(spec), *more)
    assert answer.status == 0, answer.err
    return answer


def test_validation_is_what_validate_says(ts2: CommandLine) -> None:
    measure(ts2, {"validation": {"logit_scale": SCALE}})
    said = json.loads((RUN / "validate/1/metrics.json").read_text())
    found = values()
    names = [name.removeprefix("val/") for name in said if "objective" not in name.split("/")]
    assert {"cross_entropy", "perplexity", "token_accuracy", "seen/tail_mass", "unseen/support_size"} <= set(names)
    for name in names:
        assert found[f"validation/{name}"] == pytest.approx(said[f"val/{name}"], rel=2e-6, abs=1e-9), name
    assert found["validation/tokens"] == found["validation/seen/tokens"] + found["validation/unseen/tokens"]
    assert all(describe(name).title != name for name in found)


def test_a_strangers_run_names_no_function_that_is_called(ts2: CommandLine) -> None:
    """A row `{"mkdir": 1, "trap": 2}` is a command line to `subprocess.run`."""
    shutil.copytree(RUN, "S/1")
    Path("rows.jsonl").write_text('{"mkdir": 1, "trap": 2}\n')
    config = yaml.safe_load(Path("S/1/config.yaml").read_text())
    config["data"] |= {"format": "subprocess.run", "validation": "rows.jsonl"}
    Path("S/1/config.yaml").write_text(yaml.safe_dump(config))
    answer = ts2("measure", "S/1", "--spec", "{validation: {}}")
    assert answer.status == 2
    assert answer.err.strip().endswith("If you trust it, give it: --config S/1/config.yaml")
    assert not Path("trap").exists()
    ts2("measure", "S/1", "--spec", "{validation: {}}", "--runs_dir", "S")
    assert Path("trap").exists(), "as the user said that it is a run of their own"


def test_the_toy_world_by_decoding(ts2: CommandLine) -> None:
    answer = measure(ts2, {"toyworld": {}, "decoding": "sparsemax"})
    model, tokenizer = load_model(RUN / "export")
    expected = evaluate_toyworld(model, tokenizer, load_world(), "chat", "sparsemax")
    found = {name.removeprefix("toyworld/"): value for name, value in values().items()}
    assert found == pytest.approx({name: value for name, value in expected.items() if math.isfinite(value)}, rel=1e-6)
    assert "V, T 1 " in answer.out  # the table
    measure(ts2, {"toyworld": {}})
    both = {document["decoding"]: document["values"] for document in results().values()}
    assert both["softmax"]["toyworld/seen/tail_mass"] > both["sparsemax"]["toyworld/seen/tail_mass"] == 0
    assert all(describe(name).title != name for name in found for name in [f"toyworld/{name}"])


def test_weights_between_base_and_tuned_model(ts2: CommandLine) -> None:
    """As of an export at that share, beside the values of the run itself, and once."""
    base = Path("start")
    shutil.copytree(ts2.blank, base)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).save_pretrained(base)
    options = ("-c", str(QUICKSTART), "--model.lm.path=start", "--name=own", "--trainer.enable_progress_bar=false")
    few = ("--data.limit_train=80", "--data.limit_validation=30", "--model.optimizer.lr=3e-3")
    often = ("--trainer.callbacks+=Checkpoints", "--trainer.callbacks.keep_last=3", "--trainer.max_epochs=3")
    ts2("fit", *options, *few, *often).done()
    run, last = Path("runs/own/1"), "runs/own/1/checkpoints/last.ckpt"
    measure(ts2, {"validation": {}}, model=run)
    whole = values(run)
    spec = {"validation": {}, "interpolate": 0.7}
    answer = measure(ts2, spec, model=run)
    assert f"Exported {last}, 0.7 of the way from the base model start to it, to " in answer.out
    assert values(run) == whole
    again = measure(ts2, spec, model=run).out
    assert ", kept in runs/own/1/measures/interpolate-0.7/validation-" in again
    assert "Exported" not in again, "which takes long with a large model"
    ts2("export", "--ckpt", last, "--out", "between", "--toward-base", "0.7").done()
    measure(ts2, {"validation": {}}, "--out", "apart", "--config", str(run / "config.yaml"), model="between")
    between = {n: v for f in run.glob("measures/*/*.json") for n, v in json.loads(f.read_text())["values"].items()}
    assert between == pytest.approx(values("apart"), rel=1e-6)
    assert between["validation/cross_entropy"] != pytest.approx(whole["validation/cross_entropy"], rel=1e-3)
    torch.save({}, base / "another")  # as if the base had changed
    assert " s -> runs/own/1/measures/interpolate-0.7/validation-" in measure(ts2, spec, model=run).out
    assert "between: it is of no run" in ts2("measure", "between", "--out", "x", "--spec", json.dumps(spec)).complaint
    shutil.rmtree(run / "checkpoints")
    assert "runs/own/1 has no checkpoint any more" in ts2("measure", str(run), "--spec", json.dumps(spec)).complaint


def test_the_toy_world_under_decoders_of_one_command(ts2: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each specification has its own file; the model is loaded once."""
    loaded = []
    monkeypatch.setattr(model_file, "load_model", lambda *args: loaded.append(args) or load(*args))
    load = load_model
    papers = {"temperature": 0.6, "top_k": 50, "top_p": 0.9}
    specs = [{"toyworld": {}, "toyworld_decoded": settings} for settings in ({}, papers, {"temperature": 0.3})]
    answer = ts2("measure", str(RUN), *(word for spec in specs for word in ("--spec", json.dumps(spec))))
    assert (answer.status, len(loaded)) == (0, 1)
    assert answer.out.count("decoded V") == answer.out.count("V, T 1") == 3
    assert answer.out.count(", kept in ") == 2, "the measure that they have in common"
    files = [document for document in results().values() if document["name"] == "toyworld_decoded"]
    found = {document["settings"]["temperature"]: document["values"] for document in files}
    for split in ("seen", "unseen"):
        for name in ("validity", "distinct", "coverage"):
            for temperature, decoder in ((1.0, "t1"), (0.6, "papers")):
                same = values()[f"toyworld/{split}/{name}_{decoder}"]
                assert found[temperature][f"toyworld_decoded/{split}/{name}"] == pytest.approx(same, rel=1e-6)
    assert found[0.3] != found[0.6] != found[1.0]
    assert all(describe(name).title != name for name in found[0.3])
    answer = ts2("measure", str(RUN), "--spec", "{validation: {}}", "--spec", "{}")
    assert (answer.status, "--spec: nothing to measure" in answer.err) == (2, True)


def test_a_measure_of_the_users_own(ts2: CommandLine) -> None:
    """That of docs/ablations.md, word for word; whoever reports its values need not have the file."""
    page = (Path(__file__).parents[2] / "docs/ablations.md").read_text(encoding="utf-8")
    [code] = [block for block in page.split("```") if "class Weights(Measure)" in block]
    Path("my_measures.py").write_text(code.removeprefix("python"))
    answer = measure(ts2, {"my_measures.Weights": {"order": 1}})
    model, _ = load_model(RUN / "export")
    norm = sum(float(weight.detach().abs().double().sum()) for weight in model.parameters())
    assert values()["weights/norm"] == pytest.approx(norm, rel=1e-4)
    assert "norm of the weights" in answer.out.splitlines()[-1]  # the table, by the title
    [file] = Path(RUN, "measures").glob("weights-*.json")
    result = subprocess.run(
        [sys.executable, "-c", _READ, str(file.resolve())], capture_output=True, text=True, check=True, cwd="runs"
    )
    assert result.stdout == "None norm of the weights .2f\n"  # its values do not depend on the decoding
    answer = ts2("measure", str(RUN), "--spec", "{my_measures.Weight: {}}")
    assert answer.err.startswith("error: measure: measure my_measures.Weight cannot be imported (")
    answer = ts2("measure", str(RUN), "--spec", "{os.path: {}}")
    assert answer.err.startswith("error: measure: os.path is no measure; derive it from")


_READ = """
import sys
from pathlib import Path
from ts2_lightning.evaluation import describe
from ts2_lightning.evaluation.results import read_result
result = read_result(Path(sys.argv[1]))
norm = describe("weights/norm", result.described)
print(result.decoding, norm.title, norm.format)
"""


def test_cost_is_what_the_run_wrote(ts2: CommandLine) -> None:
    state = json.loads((RUN / "state.json").read_text())
    with (RUN / "csv/metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    measure(ts2, {"cost": {}})
    found = values()
    assert found["cost/seconds"] == state["seconds"] > 0
    assert found["cost/steps"] == 40
    rates = [float(row["train/supervised_tokens_per_second"]) for row in rows if row["train/gradient_norm"]]
    assert found["cost/supervised_tokens_per_second"] == statistics.median(rates)
    memory = [float(row["train/peak_memory_gb"]) for row in rows if row["train/gradient_norm"]]
    assert found["cost/peak_memory_gb"] == max(memory)
    (RUN / "state.json").unlink()
    measure(ts2, {"cost": {}})  # its files have changed: it is made again
    assert "cost/seconds" not in values()


def test_nothing_is_measured_twice(ts2: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"toyworld": {}, "validation": {}, "cost": {}}
    first = measure(ts2, spec)
    assert first.out.count(" s -> runs/toy/1/measures/") == 3
    before = results()

    def load(*_: object) -> None:
        raise AssertionError("the model is not needed")

    with monkeypatch.context() as patch:
        patch.setattr(model_file, "load_model", load)
        again = measure(ts2, spec)
        assert again.out.count(", kept in runs/toy/1/measures/") == 3
        assert again.out[again.out.index("V, T 1") :] == first.out[first.out.index("V, T 1") :]
    sparse = measure(ts2, {"validation": {}, "cost": {}, "decoding": "sparsemax"})
    assert sparse.out.count(", kept in ") == 2  # they do not depend on the decoding
    measure(ts2, {"validation": {"limit": 5}})
    assert len(results()) == 4  # another setting is another result
    weights = RUN / "export/model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    changed = measure(ts2, {"validation": {}})
    assert " s -> " in changed.out  # a changed model is measured again, in place of the old one
    after = results()
    assert after.keys() == before.keys() | after.keys()
    assert len(after) == 4
    [name] = [name for name in before if name.startswith("validation")]
    assert after[name]["key"] != before[name]["key"]
    assert after[name]["values"] == before[name]["values"]


def test_diversity_is_that_of_the_responses_on_disk(ts2: CommandLine) -> None:
    measure(ts2, {"diversity": {"prompts": "toyworld:test", **FEW}})
    [directory] = (RUN / "responses").glob("diversity-*")
    stored = read_store(directory)
    assert len({item["text"] for item in stored.items.values()}) == len(stored.items) == 6
    texts = [[line.response.text for line in stored.lines if line.item == item] for item in stored.items]
    assert {len(of_prompt) for of_prompt in texts} == {4}
    shares = {n: [] for n in (1, 2, 3)}
    for n, found in shares.items():
        for of_prompt in texts:
            per_text = []
            for text in of_prompt:
                words = text.split()
                grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
                per_text.append(len(set(grams)) / len(grams) if grams else 0.0)
            found.append(statistics.fmean(per_text))
    found = values()
    distinct = [statistics.fmean(shares[n]) for n in (1, 2, 3)]
    assert [found[f"diversity/distinct_{n}"] for n in (1, 2, 3)] == pytest.approx(distinct)
    assert 0 < distinct[0] < 1
    assert found["diversity/ngram"] == pytest.approx(100 * statistics.fmean(distinct))
    bleu = statistics.fmean(functional.self_bleu(of_prompt) for of_prompt in texts)
    assert found["diversity/self_bleu_diversity"] == pytest.approx(100 - bleu)
    every = [line.response for line in stored.lines]
    assert found["diversity/tokens"] == statistics.fmean(response.tokens for response in every)
    assert found["diversity/ended"] == statistics.fmean(response.finish == "stop" for response in every)
    assert 0 < found["diversity/mean_probability"] < 1
    assert found["diversity/responses"] == 24
    assert all(describe(name).title != name for name in found)


def test_a_killed_measurement_goes_on(ts2: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"validation": {}, "diversity": FEW}  # its prompts are those of the run's validation rows
    measure(ts2, spec, "--out", "whole")
    made: list[str] = []
    complete = TransformersBackend.complete

    def killed(self: TransformersBackend, requests: Iterator[Request]) -> Iterator[Response]:
        for response in complete(self, requests):
            made.append(response.key)
            yield response
            if len(made) == 9:
                raise KeyboardInterrupt

    monkeypatch.setattr(TransformersBackend, "complete", killed)
    assert ts2("measure", str(RUN), "--spec", json.dumps(spec)).status == 130
    assert [name.partition("-")[0] for name in results()] == ["validation"]
    made.append("from now on nothing is killed")
    answer = measure(ts2, spec)
    assert "validation: " in answer.out
    assert ", kept in " in answer.out
    assert len(made) == len(set(made)) == 25  # those that were made are not made again
    assert values() == values("whole")
    responses = [
        {line.response for line in read_store(next(Path(run, "responses").iterdir())).lines} for run in (RUN, "whole")
    ]
    assert responses[0] == responses[1]


def test_embeddings_need_their_extra_before_anything_is_sampled(
    ts2: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    functional.sentence_embedder.cache_clear()
    spec = {"validation": {}, "diversity": {**FEW, "sentence_bert": "some/model"}}
    answer = ts2("measure", str(RUN), "--spec", json.dumps(spec))
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "sentence-transformers" in answer.err
    assert "pip install" in answer.err
    assert not (RUN / "measures").exists()

    def embedder(model: str, device: str) -> Any:
        assert (model, device) == ("some/model", "cpu")
        return lambda texts: torch.eye(2)[[len(text) % 2 for text in texts]]

    monkeypatch.setattr(diversity, "sentence_embedder", embedder)
    measure(ts2, spec, "--device", "cpu")
    [directory] = (RUN / "responses").glob("diversity-*")
    stored = read_store(directory)
    odd = [sum(len(line.response.text) % 2 for line in stored.lines if line.item == item) for item in stored.items]
    expected = [100 * (1 - (k * (k - 1) + (4 - k) * (3 - k)) / 12) for k in odd]  # pairs that are alike, of 12
    assert values()["diversity/sentence_bert"] == pytest.approx(statistics.fmean(expected))


def test_probes_leave_numbers_and_pictures(ts2: CommandLine) -> None:
    spec = {"probes": {"kinds": ["micro", "macro", "tail", "tspd"], "limit": 5, "max_new_tokens": 4}}
    measure(ts2, spec, "--device=cpu")
    [(name, document)] = results().items()
    pictures = {path.name for path in (RUN / "measures" / name).iterdir()}
    assert {"micro-1.png", "macro.svg", "tail.png", "tspd-grid.png", "tail.json", "report.md"} <= pictures
    tail = json.loads((RUN / "measures" / name / "tail.json").read_text())["models"]["toy/1"]
    assert document["documents"]["tail"] == tail
    assert tail["rows"] == 10  # five of each set
    found = document["values"]
    assert found["probes/tail/tail_mass"] == tail["tail_mass"]
    cells = document["documents"]["tspd"]["grid"]
    [cell] = [c for c in cells if (c["m"], c["eps_head"], c["eps_tail"]) == (2, 0.1, 0.2)]
    assert found["probes/tspd/share"] == cell["share"]
    questions = document["documents"]["micro"]["questions"]
    assert found["probes/micro/implausible_mass"] == pytest.approx(
        statistics.fmean(question["implausible_mass"] for question in questions)
    )
    assert found["probes/macro/mean"] == document["documents"]["macro"]["mean"]
    assert all(describe(name).title != name for name in found)


def test_a_checkpoint_is_measured_as_its_export(ts2: CommandLine) -> None:
    spec = {"toyworld": {}, "validation": {}}
    measure(ts2, spec, model=RUN / "export")  # it is of the run that it lies in
    exported = values()
    shutil.rmtree(RUN / "export")
    shutil.rmtree(RUN / "measures")
    assert "Exported" in measure(ts2, spec, model="runs/toy").out  # the newest attempt
    assert values() == pytest.approx(exported, rel=1e-6)
    assert "Exported" not in measure(ts2, spec).out  # nothing is needed of it
    shutil.rmtree(RUN / "measures")
    assert ts2("measure", str(RUN)).out.count("Exported") == 1  # also where it has to be found out what applies


def test_a_model_of_no_run(ts2: CommandLine, trained: Path) -> None:
    shutil.copytree(RUN / "export", "model")
    config = ("--config", str(RUN / "config.yaml"))
    measure(ts2, {"validation": {}}, *config, "--out", "elsewhere", model="model")
    measure(ts2, {"validation": {}})
    assert values("elsewhere") == pytest.approx(values(), rel=1e-6)
    measure(ts2, {"validation": {"limit": 3}}, "--out", "alone", model="model")
    assert values("alone")["validation/tokens"] < values()["validation/seen/tokens"]  # the world's, if nobody says
    measure(ts2, {"validation": {}}, *config, "--out", "model", model="model")
    assert values("model") == values("elsewhere")
    assert "kept in" in measure(ts2, {"validation": {}}, *config, "--out", "model", model="model").out
    answer = ts2("measure", "model")
    assert (answer.status, answer.err) == (2, "error: model: it is not a run; say with --out where its measures go\n")


def test_what_applies_is_the_default(ts2: CommandLine) -> None:
    assert ts2("measure", str(RUN)).status == 0
    assert sorted(name.partition("-")[0] for name in results()) == ["cost", "toyworld", "validation"]
    write_base(Path("other"))
    Path("rows.jsonl").write_text('{"prompt": "name a fruit", "completion": "the answer is pear ."}\n')
    Path("spec.yaml").write_text("validation: {rows: rows.jsonl}\ntemplate: plain\n")
    assert ts2("measure", "other", "--spec", "spec.yaml", "--out", "out").status == 0
    assert math.isfinite(values("out")["validation/cross_entropy"])
    said = ts2("measure", "other", "--out", "out").out
    for reason in (
        "toyworld: left out (other is not a model of the toy world",
        "validation: left out (validation.rows: other has no validation rows of its own",
        "cost: left out (other is not a run",
    ):
        assert reason in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["runs/tyo/1"], "runs/tyo/1: no such model"),
        (["other", "--out", "out", "--spec", "{toyworld: {}}"], "toyworld: other is not a model of the toy world"),
        (["other", "--out", "out", "--spec", "{cost: {}}"], "cost: other is not a run; leave the measure out"),
        (["other", "--out", "out", "--spec", "{validation: {}}"], "validation.rows: other has no validation rows"),
        ([str(RUN), "--spec", "{toyword: {}}"], "measure: no measure 'toyword'; did you mean toyworld?"),
        ([str(RUN), "--spec", "{toyworld: "], "--spec {toyworld::1: not valid YAML"),
        ([str(RUN), "--spec", "no.yaml"], "--spec no.yaml: no such file"),
        ([str(RUN), "--spec", "validation:\n  rows: " + "long " * 1000], "no such file (File name too long)"),
        ([str(RUN), "--spec", "latin.yaml"], "--spec latin.yaml: not YAML ('utf-8' codec"),
        ([str(RUN), "--spec", "runs"], "--spec runs: no such file (Is a directory)"),
        ([str(RUN), "--spec", "{}"], "--spec: nothing to measure"),
        ([str(RUN), "--spec", "{validation: {rows: no.jsonl}}"], "error: validation.rows: no file no.jsonl"),
        ([str(RUN), "--spec", "{diversity: {prompts: no.jsonl}}"], "error: diversity.prompts: no file no.jsonl"),
        ([str(RUN), "--spec", "{probes: {rows: no.jsonl}}"], "error: probes.rows: no file no.jsonl"),
        ([str(RUN), "--spec", "{validation: {rows: broken.jsonl}}"], "broken.jsonl:1: "),
        ([str(RUN), "--spec", "{diversity: {prompts: broken.jsonl}}"], "broken.jsonl:1: "),
        ([str(RUN), "--spec", "{validation: {}, template: plane}"], "plane"),
        ([str(RUN), str(RUN), "--out", "out"], "--out: "),
        ([str(RUN), "--out", "broken.jsonl"], "--out broken.jsonl: this is a file; name a directory"),
        ([str(RUN), "--device", "gpu"], "--device gpu: "),
        ([str(RUN), "--config", "broken.jsonl"], "broken.jsonl: not a run's configuration"),
        ([], "measure: the following arguments are required: MODEL"),
    ],
)
def test_one_line_says_what_is_wrong(ts2: CommandLine, options: list[str], said: str) -> None:
    write_base(Path("other"))
    Path("broken.jsonl").write_text('{"prompt": 3}\n')
    Path("latin.yaml").write_bytes("# \u00e9".encode("latin-1"))
    answer = ts2("measure", *options)
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert said in answer.err
    assert not list(Path.cwd().rglob("*.json.partial"))
    assert not Path("out").exists()
