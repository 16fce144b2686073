"""Questions behind earlier turns: what a model is asked, and responses that are not taken for those of other turns."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from tests.support.canned import Canned, canned_model
from tests.support.served_judge import ServedJudge
from ts2_lightning.evaluation import Model, check_spec, make_measures
from ts2_lightning.evaluation.protocols import Item, Part, Sampling
from ts2_lightning.evaluation.protocols.asking import ask, respond
from ts2_lightning.evaluation.protocols.items import fingerprint, plain_item, read_item
from ts2_lightning.evaluation.protocols.stored import stored_answers
from ts2_lightning.generation.backends.endpoint import Address, Endpoint
from ts2_lightning.generation.backends.json_client import ClientSettings
from ts2_lightning.runs.stamps import digest
from ts2_lightning.toyworld import build_tokenizer
from ts2_lightning.toyworld.tokenizer import model_config

PART = Part("", "rows", Sampling(2, temperature=1.0, max_new_tokens=4))
FRUIT = ({"role": "user", "content": "name a fruit"}, {"role": "assistant", "content": "pear"})
COLOR = ({"role": "user", "content": "name a color"}, {"role": "assistant", "content": "red"})


def test_what_has_no_history_keeps_its_fingerprint() -> None:
    """As version 0.1 made them, so that models that were evaluated before are still compared question by question."""
    item = Item("7", "What is 2 + 2?", "4", opening="It is")
    assert fingerprint(item) == "a38272738435"
    assert fingerprint(item) == digest(["What is 2 + 2?", "It is", False, "4"])[:12]
    assert len({fingerprint(Item("7", "Why?", history=history)) for history in ((), FRUIT, COLOR, FRUIT + COLOR)}) == 4


@pytest.mark.parametrize("history", [(), FRUIT, FRUIT + COLOR])
def test_an_item_is_read_back(history: Any) -> None:
    item = Item("7", "why?", history=history, details={"task": "CM"})
    assert read_item("7", json.loads(json.dumps(plain_item(item)))) == item


@pytest.mark.parametrize(
    "history", ["text", [{"role": "user"}], [{"role": "user", "content": 3}], ["text"], {"role": "user"}, 7]
)
def test_a_history_that_is_none_is_told(history: Any) -> None:
    with pytest.raises(ValueError, match="history"):
        read_item("7", {"question": "why?", "history": history})


def test_a_local_model_reads_all_turns_in_its_template() -> None:
    tokenizer: Any = build_tokenizer()
    model = Model.in_memory(LlamaForCausalLM(model_config()).eval(), tokenizer)
    asked = ask(model, "own", PART, [Item("0", "another one", history=FRUIT), Item("1", "another one")], seed=0)
    for item, prompt in zip(asked.items, asked.prompts, strict=True):
        turns = [*item.history, {"role": "user", "content": item.question}]
        assert list(prompt) == tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert len({request.key for requests in asked.wanted.values() for request in requests}) == 4


def test_a_server_is_sent_all_turns(tmp_path: Path) -> None:
    with ServedJudge(lambda system, text: text) as server:
        address, client = Address(f"{server.url}/v1", "judge"), ClientSettings(api_key_env="", concurrency=1)
        model = Model("m", "m", lambda: "", tmp_path, endpoint=lambda: Endpoint(address, client))
        asked = ask(model, "own", PART, [Item("0", "another one", history=FRUIT)], seed=0)
        respond(model, asked, tmp_path, batch_size=1)
    assert [body["messages"] for body in server.asked] == [[*FRUIT, {"role": "user", "content": "another one"}]] * 2


def test_stored_responses_behind_other_turns_are_kept_apart(tmp_path: Path) -> None:
    """Three items with one question: two behind the same turns share their responses, the third has its own."""
    backend = Canned(lambda question, index: f"{index} of {len(backend.made)}")
    model = canned_model(tmp_path, backend)
    items = [Item(id, "why?", history=history) for id, history in (("a", FRUIT), ("b", COLOR), ("c", FRUIT))]
    asked = ask(model, "own", PART, items, seed=0)
    made = {item.id: responses for item, responses in respond(model, asked, tmp_path, batch_size=1)}
    assert len(backend.made) == 4
    assert made["a"] == made["c"]
    assert {one.text for one in made["a"]}.isdisjoint({one.text for one in made["b"]})
    [(_, stored)] = stored_answers(tmp_path, "own", [PART], None)
    assert [item for item, _ in stored] == items
    assert {item.id: [one.text for one in responses] for item, responses in stored} == {
        id: [one.text for one in responses] for id, responses in made.items()
    }


def test_a_dialogue_of_mtbench101_is_asked_with_its_gold_answers(tmp_path: Path) -> None:
    """Whatever the model itself has said to earlier turns."""
    rows = tmp_path / "rows.jsonl"
    turns = [{"user": f"u{i}", "bot": f"b{i}"} for i in range(3)]
    rows.write_text(json.dumps({"task": "SI", "id": 1, "history": turns}) + "\n")
    asked: list[Any] = []

    class Seen(Canned):
        def complete(self, requests: Any) -> Any:
            for request in requests:
                asked.append([dict(turn) for turn in request.prompt])
                yield from super().complete([request])

    with ServedJudge(lambda system, text: "Rating: [[5]]") as judge:
        spec = {"mtbench101": {"data": str(rows), "judge": judge.settings()}}
        make_measures(
            canned_model(tmp_path / "out", Seen(lambda *_: "own")), check_spec(spec), lambda line: None, draw=False
        )
    expected = []
    for i in range(3):
        before = [
            {"role": role, "content": f"{letter}{j}"}
            for j in range(i)
            for role, letter in (("user", "u"), ("assistant", "b"))
        ]
        expected.append([*before, {"role": "user", "content": f"u{i}"}])
    assert sorted(asked, key=len) == expected
