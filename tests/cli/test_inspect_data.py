"""`data`: against rows counted by hand, against the batches of the loader, and read back from what is printed."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from transformers import GPT2Config

from tests.cli.conftest import Run
from tests.cli.standins import environment
from tests.data.data_helpers import byte_level_tokenizer
from tests.e2e.command_line import QUICKSTART, ROOT, Answer
from ts2_lightning.cli import data_report, terminal
from ts2_lightning.cli.data_report import cost_of, drawn, histogram, report
from ts2_lightning.cli.inspect_data import set_up
from ts2_lightning.cli.marked_rows import laid_out, marked, painted, read_pieces
from ts2_lightning.data import SFTData, SourceRow, encode_rows, parse, read_rows
from ts2_lightning.data.counts import Counts

ROWS = [  # of the format `tokens`
    {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4]},
    {"input_ids": [1, 2]},
    {"input_ids": [1, 2, 3, 4, 5, 6, 7, 8], "labels": [-100, 2, -100, -100, -100, -100, 7, 8]},
    {"input_ids": "one"},
    {"input_ids": [1, 2, 3], "weight": 0.5},
]
NASTY = [
    "signs ⟦of⟧ its ⟨own⟩, ⟨U+27E6⟩, ↵ and ⇥",
    "two\n\n  lines\tand a tab\r\nand another",
    "\x1b[31mred\x1b[0m \x07bell \u202eback\u2066 \xa0 \u200d",
    "<|im_end|> is only text here, <|im_start|>assistant too",
    "長い文章です。" * 30 + "👩‍👩‍👧 é e\u0301",
    "word" * 60 + " " * 100 + "x",
]


@pytest.fixture
def data(here: Path, monkeypatch: pytest.MonkeyPatch, real: Run) -> Run:
    """Runs `data` in an empty directory."""
    monkeypatch.setenv("TS2_CACHE_DIR", str(here / "cache"))
    return lambda *options: real("data", *options)


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer().save_pretrained(directory)
    return str(directory)


def write(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def chats(answers: list[str]) -> list[dict[str, Any]]:
    """One-turn rows; then one of all answers as turns."""
    turns = [
        [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": answer}]
        for n, answer in enumerate(answers)
    ]
    return [{"messages": turn} for turn in [*turns, list(itertools.chain(*turns))]]


def errors(answer: Answer) -> list[str]:
    """The lines that are errors, without what `setup` tells."""
    lines = [line for line in answer.err.splitlines() if not line.startswith("Data, ")]
    assert answer.status == (2 if lines else 0)
    return lines


def learnt(text: str) -> list[str]:
    """What is learnt in a printed row, by the printed legend alone."""
    signs = {"↵": "\n", "⇥": "\t"}
    turns, inside, turn = [], False, ""
    tokens = re.findall(r"⟨U\+[0-9A-F]{4,6}⟩|.", text.replace("\n", ""), re.S)
    for token in tokens:
        if token == "⟦":
            inside, turn = True, ""
        elif token == "⟧":
            turns.append(turn)
            inside = False
        elif inside and len(token) > 1:
            turn += chr(int(token[3:-1], 16))
        elif inside and token not in "⟨⟩":
            turn += signs.get(token, token)
    return turns


# Streamed rows -------------------------------------------------------------------------------------------------


def test_streamed_rows_are_sampled(data: Run) -> None:
    """The first rows of the stream, from all files; nothing is said of an epoch that nobody has read."""
    sources = [{"input_ids": [number + 1] * (2 + number % 4)} for number in range(3000)]
    write("a.jsonl", sources[:2900])
    write("b.jsonl", sources[2900:])
    options = ("--data.format", "tokens", "--data.streaming", "true", "--data.batch_size", "10", "--show", "2")
    out = data("--data.train", "[a.jsonl, b.jsonl]", *options).done().out
    assert "Train: 1,000 rows read from 2 files" in out
    counts = [int(count) for count in re.findall(r"^ +(\d+)  [ab]\.jsonl$", out, re.M)]
    assert sum(counts) == 1000
    assert min(counts) > 0
    assert "An epoch: streamed, so what it costs is not known; these are its first 1,000 rows" in " ".join(out.split())
    assert re.search(r"a step +10 rows, of which 100\.0% are kept", out)
    assert not re.search(r"^  steps ", out, re.M)
    assert len(re.findall("^-- Row ", out, re.M)) == 2
    assert not list(Path("cache").rglob("*.arrow"))


def test_a_bad_row_among_the_first_streamed_ones(data: Run) -> None:
    write("x.jsonl", ROWS)
    answer = data("--data.train", "x.jsonl", "--data.streaming", "true", *OPTIONS)
    assert "kept           4" in answer.out
    (line,) = errors(answer)
    assert "error: x.jsonl:4: input_ids must be a list of integers, got 'one'; 1 of 5 rows is bad" in line


def test_turns_that_are_dropped_with_their_texts_are_no_truncation() -> None:
    encoded = encode_rows([SourceRow(ROWS[0], "x.jsonl:1")], None)
    rows = replace(encoded, counts=Counts(read=1, kept=1, turns_lost=1))
    lines = list(data_report._count_lines(rows, has_turns=True))
    assert "  truncated      0 of the kept" in lines
    assert "  dropped        0 as too long; and 1 turn of the kept, each with its text" in lines


# Counted by hand -----------------------------------------------------------------------------------------------

OPTIONS = ("--data.max_length", "6", "--data.batch_size", "2", "--data.micro_batch_size", "1")


def test_rows_counted_by_hand(data: Run) -> None:
    out = data("--data.train", write("rows.jsonl", ROWS), *OPTIONS, "--data.max_rejects", "0.2").done().out
    for line in [
        "Train: 5 rows read from 1 file",
        "  5  rows.jsonl",
        "  read           5",
        "  kept           4",
        "  truncated      1 of the kept; 1 turn in them not learnt any more",
        "  dropped        0 as too long",
        "  bad            1: 1 wrong type",
        "  tokens         15, of which 6 supervised (40.0%)",
        "  learnt runs    1 in 3 rows, 2 in 1 row",
        "  least 2, 5 % 2, 25 % 2, median 3, 75 % 4, 95 % 6, most 6; mean 3.8",
        "Weights: 1 row other than 1; from 0.5 to 1, mean 0.875",
        "Times: every row once an epoch",
        "An epoch on 1 rank (batch 2, micro-batch 1, packing none)",
        "  steps          2",
        "  micro-batches  4 per rank, 2 a step",
        "  rows           4",
        "  tokens         15, of which 6 supervised",
        "  padding        0.00% of the 15 places that are computed in the first epoch",
    ]:
        assert line in out.splitlines(), f"{line}\nnot in\n{out}"
    assert re.search(r"^    rows.jsonl:4: .*input_ids", out, re.M)
    assert len(re.findall("^-- Row", out, re.M)) == 3


def test_a_given_row(data: Run) -> None:
    """Numbered as in `Batch.row_index`: the bad one has no number."""
    write("rows.jsonl", ROWS)
    for number, shown in enumerate(
        [
            "-- Row 0: 4 tokens, 2 supervised; rows.jsonl\n1 ⟦2 ⟧3 ⟦4⟧\n",
            "-- Row 1: 2 tokens, 1 supervised; rows.jsonl\n1 ⟦2⟧\n",
            "-- Row 2: 6 tokens, 1 supervised; rows.jsonl\n1 ⟦2 ⟧3 4 5 6\n",
            "-- Row 3: 3 tokens, 2 supervised, weight 0.5; rows.jsonl\n1 ⟦2 3⟧\n",
        ]
    ):
        answer = data("--data.train", "rows.jsonl", *OPTIONS, "--data.max_rejects", "1", "--row", str(number))
        assert answer.out.endswith(f"\n\n{shown}")


def test_ranks_without_a_row_compute_a_filler(data: Run) -> None:
    """Two steps of two rows on three ranks: each step has one filler of one place."""
    rows = write("rows.jsonl", [ROWS[0], ROWS[1], ROWS[4], ROWS[0]])
    out = data("--data.train", rows, *OPTIONS, "--world_size", "3", "--show", "0").out
    assert "  micro-batches  2 per rank, 1 a step" in out
    assert "of the 15 places" in out  # 13 tokens
    assert "  padding        13.33% " in out
    assert "-- Row" not in out


def test_times_and_another_split(data: Run, here: Path) -> None:
    """Rows of a source that comes twice, and of one that comes half a time."""
    write("twice.jsonl", [ROWS[0]])
    write("half.jsonl", [ROWS[1]] * 4)
    text = "data:\n  train:\n  - {path: twice.jsonl, times: 2}\n  - {path: half.jsonl, times: 0.5}\n  batch_size: 3\n"
    Path("mix.yaml").write_text(text + "  micro_batch_size: 1\n  seed: ${data.batch_size}\n  test: half.jsonl\n")
    out = data("-c", "mix.yaml", "--show", "0").done().out
    assert "Times in an epoch: 0.5 for 4 rows, 2 for 1 row" in out
    assert "  1  twice.jsonl\n  4  half.jsonl\n" in out
    assert "  steps          2\n" in out
    assert "  rows           4\n  tokens         12, of which 6 supervised\n" in out
    out = data("-c", "mix.yaml", "--split", "test", "--data.eval_batch_size", "3", "--row", "3").done().out
    assert out.startswith("Test: 4 rows read from 1 file\n")
    assert "  batches        2 per rank\n  rows           4\n  tokens         8, of which 4 supervised\n" in out
    assert out.endswith("-- Row 3: 2 tokens, 1 supervised; half.jsonl\n1 ⟦2⟧\n")


def test_a_fraction_of_the_training_rows(data: Run) -> None:
    rows = [{"input_ids": [1, number]} for number in range(2, 60)]
    write("rows.jsonl", rows)
    options = ("--data.train", "rows.jsonl", "--data.validation", "0.3", "--show", "0")
    counts = []
    for split in ("train", "validation"):
        out = data(*options, "--split", split).done().out
        counts.append(int(re.search(r"kept +(\d+)", out)[1]))  # type: ignore[index]
    assert sum(counts) == len(rows)
    assert counts[1] < counts[0]


def test_several_sets(data: Run) -> None:
    """All of a split, or one of them; named on the command line, in a file, or both."""
    write("zebra.jsonl", ROWS[:3])
    write("ant.jsonl", ROWS[:2])
    Path("sets.yaml").write_text("data:\n  validation:\n    zebra: zebra.jsonl\n    ant: none.jsonl\n")
    for options in (
        ("--data.validation.zebra", "zebra.jsonl", "--data.validation.ant=ant.jsonl"),
        ("--data.validation", "{zebra: zebra.jsonl, ant: [ant.jsonl]}"),
        ("-c", "sets.yaml", "--data.validation.ant", "ant.jsonl"),
    ):
        out = data(*options, "--data.format", "tokens", "--show", "0", "--split", "validation").done().out
        assert re.findall(r"^(\S+): (\d) rows read", out, re.MULTILINE) == [
            ("Validation.zebra", "3"),
            ("Validation.ant", "2"),
        ]
        alone = data(*options, "--data.format", "tokens", "--show", "0", "--split", "validation.ant").done().out
        assert out.endswith(alone)
    assert data("-c", "sets.yaml", "--split", "validation.znt").refusal == (
        "data.validation.znt is not set: name the files with the rows; did you mean validation.ant?"
    )
    Path("sets.yaml").write_text("data:\n  validation:\n    ant: a.jsonl\n    ant: b.jsonl\n")
    refusal = data("-c", "sets.yaml", "--split", "validation").refusal
    assert refusal == "sets.yaml:4: ant was given before, on line 3; keep one"


def test_only_the_rows_of_the_split_are_read(data: Run) -> None:
    data("--data.train", write("rows.jsonl", ROWS[:2]), "--data.validation", "nowhere.jsonl").done()


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([0], ["  0 - 0  1 "]),
        ([7, 7, 3], ["  3 - 3  1 ", "  4 - 4  0 ", "  5 - 5  0 ", "  6 - 6  0 ", "  7 - 7  2 "]),
        ([999, 1000], ["    900 -   999  1 ", "  1,000 - 1,099  1 "]),
    ],
)
def test_histogram(values: list[int], lines: list[str]) -> None:
    drawn_lines = histogram(np.array(values), 50)
    assert [line.replace("█", "").rstrip() for line in drawn_lines] == [line.rstrip() for line in lines]
    assert max(map(len, drawn_lines)) <= 50
    for value, line in itertools.product(values, drawn_lines):
        low, high = (int(number.replace(",", "")) for number in re.match(r" +([\d,]+) - +([\d,]+)", line).groups())  # type: ignore[union-attr]
        if low <= value <= high:
            assert "█" in line


# Against the loader --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("packing", ["none", "packed", "padding_free"])
def test_the_cost_is_that_of_the_batches(here: Path, packing: Any, world_size: int) -> None:
    """Every batch of every rank, as the loader makes it."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 40, (53,), generator=generator).tolist()
    file = write("rows.jsonl", [{"input_ids": [1] * length} for length in lengths])
    made = SFTData(
        train=file, test=file, packing=packing, max_length=64, batch_size=12, micro_batch_size=2, cache=False, seed=3
    )
    made.setup()
    train, test = cost_of(made, "train", world_size), cost_of(made, "test", world_size)
    found = {"train": [0] * 4, "test": [0] * 4}
    for rank in range(world_size):
        made.trainer = SimpleNamespace(  # type: ignore[assignment]
            distributed_sampler_kwargs={"num_replicas": world_size, "rank": rank},
            global_step=0, limit_train_batches=1.0, fit_loop=SimpleNamespace(is_resuming=False),
        )  # fmt: skip
        for split, loader in (("train", made.train_dataloader()), ("test", made.test_dataloader())):
            batches = list(loader)
            assert len(batches) == (train if split == "train" else test).micro_batches
            for batch in batches:
                rows = batch["row_index"] >= 0
                found[split][0] += int(rows.sum())
                found[split][1] += int(batch["row_spans"].diff(dim=1).squeeze(1)[rows].sum())
                found[split][2] += len(batch["labels"])
                found[split][3] += batch["input_ids"].numel()
    for split, cost in (("train", train), ("test", test)):
        assert found[split] == [cost.rows, cost.tokens, cost.supervised, cost.places]
        assert (cost.rows, cost.tokens) == (53, sum(lengths))
    assert train.steps == made.steps_per_epoch == 5


# Rows that are shown -------------------------------------------------------------------------------------------


def test_what_is_marked_is_the_answer_and_its_end(data: Run, tokenizer_directory: str) -> None:
    answers = [" ".join(["The answer is 42."] * 9), *NASTY]
    rows = chats(answers)
    write("rows.jsonl", rows)
    tokenizer = ("--data.tokenizer", tokenizer_directory, "--data.template", "chatml")
    out = data("--data.train", "rows.jsonl", *tokenizer, "--data.max_length", "9999", "--show", "99").done().out
    assert "\x1b" not in out
    assert all(cell_len(line) <= 80 for line in out.splitlines()), "wider than 80 columns"
    shown = re.split(r"^-- Row \d+: .*\n", out, flags=re.M)[1:]
    assert len(shown) == len(rows)
    for row, text in zip(rows, shown, strict=True):
        contents = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert learnt(text.removesuffix("\n\n").removesuffix("\n")) == [f"{content}<|im_end|>" for content in contents]


@pytest.mark.parametrize("width", [20, 80])
def test_laying_out_loses_nothing(width: int) -> None:
    tokenizer = byte_level_tokenizer()
    for text in [*NASTY, "", "\n", " ", "a\n"]:
        pieces = [
            piece._replace(turn=turn)
            for turn in (-1, 0, 1)
            for piece in read_pieces(SimpleNamespace(ids=_ids(tokenizer, text), spans=[]), tokenizer)  # type: ignore[arg-type]
        ]
        segments = marked(pieces)
        lines = laid_out(segments, width)
        whole = "".join(segment.text for segment in segments)
        assert lines.replace("\n", "") == whole.replace("\n", "")
        assert lines.count("↵\n") == whole.count("↵\n") == 3 * text.count("\n")
        assert all(cell_len(line) <= width for line in lines.split("\n"))
        coloured = laid_out(painted(pieces), width)
        bare = re.sub(r"\x1b\[[\d;]+m", "", coloured)
        assert "\x1b" not in bare
        assert bare.replace("\n", "") == re.sub("[⟦⟧]", "", whole).replace("\n", "")
        for line in coloured.split("\n"):  # a pager shows lines one by one
            assert line.count("\x1b[32m") == line.count("\x1b[0m")


def _ids(tokenizer: Any, text: str) -> Any:
    return np.array(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), dtype=np.int32)


def test_colours_on_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_directory: str) -> None:
    made = SFTData(
        train=write("rows.jsonl", chats(["Yes."])), tokenizer=tokenizer_directory, template="chatml", cache=False
    )
    set_up(made, "train")
    monkeypatch.setattr(data_report, "in_colour", lambda: True)
    coloured = report(made, "train", row=0)
    assert "\x1b[32mYes.\x1b[0m\x1b[32;1m<|im_end|>\x1b[0m" in coloured
    assert "\x1b[1m<|im_start|>\x1b[0m" in coloured
    assert "⟦" not in coloured


@pytest.mark.parametrize(
    ("on_screen", "variables", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),  # as https://no-color.org has it
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_when_there_are_colours(
    monkeypatch: pytest.MonkeyPatch, on_screen: bool, variables: dict[str, str], expected: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(terminal.sys, "stdout", SimpleNamespace(isatty=lambda: on_screen))
    assert terminal.in_colour() is expected


def test_the_rows_are_drawn_with_the_seed() -> None:
    assert drawn(1000, 3, seed=1) == drawn(1000, 3, seed=1) != drawn(1000, 3, seed=2)
    assert drawn(1000, 0, seed=1) == []
    assert sorted(set(drawn(50, 50, seed=1))) == list(range(50))


# Without a model, and with mistakes ----------------------------------------------------------------------------


def test_no_weights_are_read(data: Run, here: Path, tokenizer_directory: str) -> None:
    """The model's directory has a tokenizer, and a file from which no weights can be read."""
    shutil.copytree(tokenizer_directory, "model")
    Path("model", "config.json").write_text('{"model_type": "llama"}')
    Path("model", "model.safetensors").write_bytes(b"not weights")
    write("rows.jsonl", chats(["Yes."]))
    out = data("--model.lm.path", "model", "--data.train", "rows.jsonl", "--data.template", "chatml").done().out
    assert "  tokenizer      model\n" in out
    data("--model.lm.path", "/nowhere", "--data.tokenizer", "toyworld", "--data.train", "rows.jsonl").done()
    assert sorted(entry.name for entry in here.iterdir()) == ["cache", "model", "rows.jsonl"], "a run was made"


def test_the_quickstart_without_its_base_model(data: Run, here: Path) -> None:
    """`model.lm.path: toyworld` would train the base model on first use."""
    out = data("-c", str(QUICKSTART), "--split", "validation").done().out
    assert "⟨<|end|>⟩⟧" in out
    assert not list((here / "cache").rglob("*.safetensors"))


def test_bad_rows_are_reported_and_then_refused(data: Run) -> None:
    write("rows.jsonl", ROWS)
    answer = data("--data.train", "rows.jsonl", "--show", "0")
    assert "bad            1: 1 wrong type" in answer.out
    [line] = errors(answer)
    assert line.startswith("error: rows.jsonl:4: ")
    assert "1 of 5 rows is bad (1 wrong type)" in line
    assert errors(data("--data.train", "rows.jsonl", "--data.max_rejects", "0.2")) == []


def test_only_bad_rows(data: Run) -> None:
    write("rows.jsonl", [ROWS[3], ROWS[3]])
    answer = data("--data.train", "rows.jsonl")
    assert answer.out == ""
    [line] = errors(answer)
    assert "rows.jsonl:1: " in line
    assert "2 of 2 rows are bad (2 wrong type)" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--split tset", "--split: expected one of train, validation, test, predict, got 'tset'; did you mean test?"),
        ("--split test", "data.test is not set: name the files with the rows"),
        ("--data.tokeniser x", "--data.tokeniser: no such option; did you mean --data.tokenizer?"),
        ("--data.packing packd", "--data.packing: expected one of none, packed, padding_free, got 'packd'; did you"),
        ("--data.seed ${data.sed}", "--data.seed: ${data.sed}: no such setting; did you mean data.seed?"),
        ("--world_size 0", "--world_size must be a whole number of at least 1, got 0"),
        ("--show -1", "--show must be a whole number of at least 0, got -1"),
        ("--show many", "--show: expected int, got 'many'"),
        ("--row 2", "--row 2: train has the rows 0 to 1"),
        ("--row -1", "--row must be a whole number of at least 0 or null, got -1"),
        ("-c nowhere.yaml", "-c nowhere.yaml: no such file"),
        ("-c bad.yaml", "bad.yaml:2: data.trian: no such setting; did you mean data.train?"),
    ],
)
def test_a_mistake_takes_one_line(data: Run, options: str, expected: str) -> None:
    write("rows.jsonl", ROWS[:2])
    Path("bad.yaml").write_text("data:\n  trian: rows.jsonl\n")
    answer = data("--data.train", "rows.jsonl", *options.split())
    [line] = errors(answer)
    assert (answer.out, line.startswith(f"error: {expected}")) == ("", True), line


def test_later_files_and_options_win(data: Run) -> None:
    write("rows.jsonl", ROWS[:2])
    Path("one.yaml").write_text("data:\n  train: rows.jsonl\n  batch_size: 5\n  micro_batch_size: 5\n")
    Path("two.yaml").write_text("data:\n  batch_size: 4\n")
    answer = data("-c", "one.yaml", "-c", "two.yaml", "--data.micro_batch_size", "3")
    assert "(batch 4, micro-batch 3, packing none)" in answer.out


def test_a_reader_that_has_seen_enough(here: Path) -> None:
    """As in `data ... | head -1`."""
    write("rows.jsonl", ROWS[:2])
    command = [sys.executable, "-m", "ts2_lightning.cli", "data", "--data.train", "rows.jsonl"]
    surroundings = {**environment(), "PYTHONPATH": str(ROOT), "TS2_CACHE_DIR": str(here / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings) as process:
        process.stdout.close()
        err = process.stderr.read().decode()
    assert errors(Answer(process.returncode, "", err)) == []


def test_a_character_that_the_output_does_not_have(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("out.txt", "w", encoding="ascii") as stream:
        monkeypatch.setattr(terminal.sys, "stdout", stream)
        terminal.put("⟦é⟧\udcff")
    assert Path("out.txt").read_text() == "\\u27e6\\xe9\\u27e7\\udcff\n"


# Real rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["lima_1029.jsonl.gz", "no_robots_test.jsonl.gz", "gsm8k_train.jsonl.gz"])
def test_real_rows(data: Run, shared_data: Path, tokenizer_directory: str, file: str) -> None:
    """Their numbers are those of the file, and what is marked in the rows shown is what the file has."""
    path = shared_data / "sft" / file
    if not path.is_file():
        pytest.skip(f"needs {path}, which is absent")
    options = ("--data.train", str(path), "--data.tokenizer", tokenizer_directory, "--data.template", "chatml")
    out = data(*options, "--data.max_length", "100000", "--show", "20", "--data.max_rejects", "0.1").done().out
    rows: list[Any] = list(read_rows(path))
    assert f"  read           {len(rows):,}\n" in out
    heads = re.findall(r"^-- Row (\d+): ", out, re.M)
    shown = re.split(r"^-- Row \d+: (?:.*\n(?=  /)  .*\n|.*\n)", out, flags=re.M)[1:]
    assert len(heads) == 20
    assert "  bad            0\n" in out  # so a row's number is its place in the file
    for number, text in zip(heads, shown, strict=True):
        messages: Any = parse(rows[int(number)].fields).messages  # type: ignore[union-attr]
        contents = [message["content"] for message in messages if message["role"] == "assistant"]
        assert learnt(text.rstrip("\n")) == [f"{content}<|im_end|>" for content in contents]


def test_a_sentencepiece_tokenizer(data: Run, shared_data: Path) -> None:
    """The space in an answer's first token is not part of the answer. This tokenizer makes one of several spaces."""
    tokenizer, file = shared_data / "models" / "stories260K", shared_data / "sft" / "gsm8k_train.jsonl.gz"
    options = ("--data.train", str(file), "--data.tokenizer", str(tokenizer), "--data.limit_train", "50")
    out = data(*options, "--show", "50").done().out
    shown = re.split(r"^-- Row \d+: (?:.*\n(?=  /)  .*\n|.*\n)", out, flags=re.M)[1:]
    for row, text in zip(read_rows(file), shown, strict=False):
        messages: Any = parse(row.fields).messages  # type: ignore[union-attr]
        answer = re.sub(" +", " ", messages[-1]["content"])
        assert learnt(text.rstrip("\n")) == [f"{answer}</s>"]


def test_help(data: Run) -> None:
    out = data("--help").done().out
    assert out.startswith("usage: ts2 data ")
    for option in ("--data.train ", "--split ", "--show ", "--row ", "--world_size ", "--model.loss "):
        assert f"  {option}" in out


def test_the_settings_that_fit_records(data: Run, real: Run) -> None:
    """`config.yaml` of a run has every setting of `fit`, not only those of the rows."""
    Path("config.yaml").write_text(real("fit", "-c", str(QUICKSTART), "--print_config").done().out)
    out = data("-c", "config.yaml", "--show", "0").done().out
    assert "  steps          67\n" in out


def write_gpt2(name: str, positions: int, tokenizer_directory: str) -> str:
    """A model that is a config.json, and a tokenizer."""
    shutil.copytree(tokenizer_directory, name)
    GPT2Config(n_positions=positions, architectures=["GPT2LMHeadModel"]).save_pretrained(name)
    return name


def test_rows_are_as_long_as_the_model_takes_them(data: Run, tokenizer_directory: str) -> None:
    model = ("--model.lm.path", write_gpt2("gpt2", 16, tokenizer_directory))
    rows = ("--data.train", write("rows.jsonl", chats(["Yes, and more of it.", "No."])), "--data.template", "plain")
    out = data(*model, *rows).done().out
    assert "Tokens of a row (max_length 16)\n" in out
    assert "most 16;" in out
    assert data(*model, *rows, "--data.max_length", "17").refusal == (
        "data.max_length is 17, more than the context of gpt2, 16 tokens, and there is no position behind it; "
        "set it to 16 at most, or to null, which is the model's"
    )
    assert "Tokens of a row (max_length 2,048)\n" in data("--data.tokenizer", tokenizer_directory, *rows).out


def test_a_model_that_is_not_here_is_no_hindrance(data: Run) -> None:
    options = ("--model.lm.path", "/nowhere", "--data.tokenizer", "toyworld", "--data.train", "toyworld:train")
    with pytest.warns(UserWarning, match="what the model takes is not known, .* cannot load '/nowhere'"):
        out = data(*options, "--show", "0").done().out
    assert "Tokens of a row (max_length 2,048)\n" in out


def test_rows_with_tokens_that_the_model_is_to_be_given(data: Run, tokenizer_directory: str) -> None:
    model = ("--model.lm.path", write_gpt2("gpt2", 64, tokenizer_directory))
    config = json.loads(Path("gpt2/config.json").read_text())
    Path("gpt2/config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    rows = ("--data.train", write("rows.jsonl", chats(["Yes."])), "--data.template", "plain")
    answer = data(*model, *rows)
    assert answer.out == ""
    told = r"data.train: rows.jsonl:\d: token id \d+ has no row in the embedding of gpt2, which has 100;"
    assert re.search(told, answer.complaint)
    data(*model, *rows, "--model.lm.resize_embeddings", "true").done()
    refused = data(*model, *rows, "--model.lm.resize_embeddings", "9").complaint
    assert "model.lm.resize_embeddings is 9, and the embedding of gpt2 has 100 rows; none is taken away" in refused
