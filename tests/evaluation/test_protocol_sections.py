"""What the page of `evaluate` shows: the numbers of its table, responses from disk, tokens of models that are there."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from tests.evaluation.test_token_explorer import NAMES, network, words
from tests.support.canned import Canned, canned_model
from ts2_lightning.evaluation import Model, check_spec, files_of, make_measures
from ts2_lightning.evaluation.protocols import DataSet, Item, Protocol, Row, Sampling, Scored, right_answer_values
from ts2_lightning.evaluation.protocols.sections import ProtocolExplorer, text_sections, value_sections, worth
from ts2_lightning.evaluation.protocols.tables import Evaluated, as_csv
from ts2_lightning.evaluation.results import read_result
from ts2_lightning.generation import Response
from ts2_lightning.pages import Chart, Page, Table, Texts, Tokens


@dataclass(frozen=True)
class Words(Protocol):
    """Whether the answer begins with a word."""

    name: ClassVar[str] = "words"
    values: ClassVar = right_answer_values()
    data_sets: ClassVar = {"words": DataSet("nobody/words", "test", 3, "word")}
    samplings: ClassVar = {"paper": Sampling(n=4, temperature=1.0, max_new_tokens=6)}

    def item(self, row: Row, data_set: str) -> Item:
        return Item(str(row.number), f"{row.text('word')} w1", row.text("word"))

    def score(self, item: Item, responses: list[Response]) -> list[Scored]:
        return [Scored(one.key, one.text[:2], float(one.text.startswith(str(item.gold)))) for one in responses]


class Silent(Words):
    """The same, whose texts stay in their files."""

    texts_stay: ClassVar[bool] = True


@pytest.fixture
def protocol(tmp_path: Path) -> Words:
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"word": f"w{i}"}) + "\n" for i in range(12)))
    return Words(data=str(tmp_path / "words.jsonl"))


def local(seed: int, out: Path) -> Model:
    model = Model.in_memory(network(seed), words(*NAMES), f"m{seed}")
    model.identity, model.out, model.template = seed, out / str(seed), "plain"
    return model


def measured(model: Model, protocol: Protocol) -> Evaluated:
    spec = check_spec({f"{__name__}.{type(protocol).__name__}": {"data": protocol.data}})
    make_measures(model, spec, lambda line: None, draw=False)
    return Evaluated(model.title, {name: read_result(file) for name, file in files_of(model.out, spec).items()})


def test_tables_have_the_numbers_of_the_table_for_programs(tmp_path: Path, protocol: Words) -> None:
    models = [canned_model(tmp_path / name, Canned(lambda q, i, s=skill: q[:2] if i < s else "w9"), name)
              for name, skill in (("weak", 1), ("strong", 3))]  # fmt: skip
    evaluated = [measured(model, protocol) for model in models]
    rows = list(csv.DictReader(io.StringIO(as_csv(evaluated))))
    table, *charts = value_sections(evaluated)
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["weak", "strong"]
    by_title = {title: [row[i] for row in table.rows] for i, title in enumerate(table.head)}
    shown = {title: [row[i] for row in table.shown or ()] for i, title in enumerate(table.head)}
    means = {
        value: [float(row["mean"]) for row in rows if row["value"] == value] for value in ("accuracy", "pass_at_4")
    }
    assert by_title["accuracy"] == means["accuracy"]
    assert by_title["pass@4"] == means["pass_at_4"]
    difference = [row for row in rows if row["value"] == "accuracy"][1]
    assert by_title["accuracy, minus weak"] == [None, float(difference["difference"])]
    assert shown["accuracy, minus weak"][1].startswith("+0.")
    assert "[" in shown["accuracy"][0]
    curves = [chart for chart in charts if isinstance(chart, Chart) and "right in one of k" in chart.title]
    curve = evaluated[0].results["words"].documents["curves"]["pass"]
    assert [[*one.x] for one in curves[0].series] == [[1, 2, 4]] * 2
    assert list(curves[0].series[0].y) == [curve[k][0] for k in curve]
    Page("t", [table, *charts]).html()


def test_responses_stand_side_by_side_and_nothing_is_made_for_it(tmp_path: Path, protocol: Words) -> None:
    backends = [Canned(lambda q, i, n=name: f"{q[:2]} {n} {i}...") for name in ("a", "b")]
    models = [canned_model(tmp_path / name, one, name) for name, one in zip("ab", backends, strict=True)]
    assert text_sections(models, [protocol]) == [], "nothing is there yet, and nothing is sampled"
    for model in models:
        measured(model, protocol)
    made = [len(one.made) for one in backends]
    [section] = text_sections(models, [protocol])
    assert isinstance(section, Texts)
    assert len(section.items) == 10
    assert section.items[3].heading == "w3 w1"
    assert section.items[3].columns == [
        (name, [(f"w3 {name} {i}...", "score 1 · answer w3 · cut off") for i in range(3)]) for name in "ab"
    ]
    assert [len(one.made) for one in backends] == made
    assert text_sections(models, [Silent(data=protocol.data)]) == []


def test_tokens_of_models_that_are_there(tmp_path: Path, protocol: Words) -> None:
    said: list[str] = []
    served = canned_model(tmp_path / "served", Canned(lambda q, i: "w1"), "served")
    models = [local(0, tmp_path), served, local(1, tmp_path)]
    explorer = ProtocolExplorer([protocol, Silent(data=protocol.data)], 2, said.append)
    for model in models:
        explorer.listen(model, loads=True)
    [section] = explorer.sections()
    assert isinstance(section, Tokens)
    assert section.questions == ["words: w0 w1", "words: w1 w1"]
    assert section.models == ["m0", "m1"]
    assert [sorted(text.views) for text in section.texts] == [[0, 1]] * 4
    assert said == ["tokens: served is not here to be looked into; left out"]
    assert not any("network" in vars(model) for model in models), "one at a time is loaded"


def test_no_model_is_loaded_for_the_page_alone(tmp_path: Path, protocol: Words) -> None:
    model = local(0, tmp_path)
    assert model.end_ids  # of the loaded model
    model.forget()
    explorer = ProtocolExplorer([protocol], 2, lambda line: None)
    explorer.listen(model, loads=False)
    assert explorer.sections() == []
    assert not (tmp_path / "0" / "tokens").exists()
    for count in (0, 2):
        none = ProtocolExplorer([protocol] if not count else [Silent(data=protocol.data)], count, lambda line: None)
        none.listen(local(1, tmp_path), loads=True)
        assert none.sections() == []


@pytest.mark.parametrize(
    ("scored", "said"),
    [
        (Scored("k", "-0.51", -0.51, "[-0.510000023]"), "score -0.51"),  # a reward says it once
        (Scored("k", "1", 1.0), "score 1 · answer 1"),
        (Scored("k", "4", 4.0, "Total rating: 4"), "score 4 · answer 4 · Total rating: 4"),
        (Scored("k", None, 0.0, "[0.0]"), "score 0 · no answer read · [0.0]"),
        (Scored("k", "1", 1.0, "[" * 99_999), f"score 1 · answer 1 · {'[' * 60}…"),
    ],
)
def test_what_a_response_is_worth_is_said_once(scored: Scored, said: str) -> None:
    assert worth(Response("k", "text", 1, "stop"), scored) == said
