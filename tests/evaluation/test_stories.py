"""Short stories and small prompts: what is asked of models and judges, ratings and self-BLEU, and a judge that dies."""

import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from sacrebleu.metrics import BLEU

from tests.support.canned import canned_model
from tests.support.errors import refused
from tests.support.served_judge import ServedJudge
from ts2_lightning.cli.evaluate import run as evaluate
from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.evaluation import Model, check_spec, files_of, make_measures
from ts2_lightning.evaluation.judges import Case, ChatJudge, ChatSettings
from ts2_lightning.evaluation.protocols.stories import RATING, Stories, cleaned
from ts2_lightning.evaluation.protocols.tables import Evaluated, remarks
from ts2_lightning.evaluation.results import Result, read_result
from ts2_lightning.generation.backends import Backend
from ts2_lightning.generation.backends.endpoint import Endpoint
from ts2_lightning.generation.requests import Request, Response
from ts2_lightning.types import UserError

STORIES = {
    "Tom had a red ball.": [" He lost the\nball.", "He LOST the ball.", "A dog ate it {response}.", ""],
    "Ann was sad.": [
        "<|response|> She sang. \n<|/response|>\nInstruction:",
        "She sang.",
        "She cried...",
        "Nobody knew.",
    ],
}
PROMPTS = {"What is Atlantis?": ["A city.", "A lost city.", "An island.", "Water <|/response|> and more"]}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS2_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    prompts = [{"instruction": text, "dataset": "helpful_base"} for text in PROMPTS]
    prompts.append({"instruction": "Write code.", "dataset": "vicuna"})
    rows = {"short_stories": [{"prompt": text} for text in STORIES], "small_prompts": prompts}
    for name, of_set in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_set))
    return {name: str(tmp_path / f"{name}.jsonl") for name in rows}


class Written(Backend):
    """Responses that are written here, whether they continue a text or answer a message."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def complete(self, requests: Iterable[Request]) -> Iterator[Response]:
        for request in requests:
            prompt: Any = request.prompt
            question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            self.asked.append(prompt)
            known = {**STORIES, **PROMPTS}
            text = next(known[name] for name in known if name in question)[request.index]
            yield Response(request.key, text, len(text.split()), "length" if text.endswith("...") else "stop")

    @property
    def versions(self) -> dict[str, str]:
        return {"backend": "written"}


def measured(out: Path, backend: Any, **settings: Any) -> Any:
    spec = check_spec({"stories": settings})
    make_measures(canned_model(out, backend), spec, lambda line: None, draw=False)
    [file] = files_of(out, spec).values()
    return read_result(file)


# What is asked --------------------------------------------------------------------------------------------------


def test_prompts_of_the_judge_are_tofu_s_word_by_word() -> None:
    """Digests of JUDGE_INSTRUCT and JUDGE_STORY at edec5a9."""
    judge: Any = Stories(judge=ChatSettings(model="nobody")).make_judge()
    texts = [text.replace("{question}", "{}").replace("{response}", "{}") for text in _texts(judge)]
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts] == [
        "dd7e4a44f6800671",
        "4f54ce680332580b",
    ]


def _texts(judge: Any) -> list[str]:
    return [judge.asks.text, judge.asks.instead.text]


def test_stories_are_continued_and_small_prompts_asked_as_the_model_was_trained(data: dict[str, str]) -> None:
    stories = Stories(data=data).items("short_stories")
    assert [(item.question, item.continued) for item in stories] == [(text, True) for text in STORIES]
    [prompt] = Stories(data=data).items("small_prompts")  # what is no part of helpful_base is left out
    assert (prompt.question, prompt.continued) == ("What is Atlantis?", False)
    for protocol in (Stories(data=data, variant="papers_code"), Stories(data=data, asked_in="delimiters")):
        [prompt] = protocol.items("small_prompts")
        digest = hashlib.sha256(prompt.question.replace("What is Atlantis?", "X").encode()).hexdigest()[:16]
        assert (digest, prompt.continued) == ("e2d41d3247512fd6", True)  # PROMPT.format("X", "") at edec5a9
        chat = jinja2.Template(TEMPLATES["tofu"].jinja).render(
            messages=[{"role": "user", "content": "What is Atlantis?"}]
        )
        assert prompt.question == chat  # so a model that was trained with this template is asked the same
    [prompt] = Stories(data=data, variant="papers_code", asked_in="chat").items("small_prompts")
    assert not prompt.continued
    assert (Stories().sampling.top_k, Stories(variant="papers_code").sampling.top_k) == (0, 50)


def test_the_papers_files_are_read(shared_data: Path) -> None:
    files = {"short_stories": "tofu_short_stories.jsonl", "small_prompts": "tofu_small_prompts_half.jsonl"}
    protocol = Stories(data={name: str(shared_data / "eval" / file) for name, file in files.items()})
    counts = [len(protocol.items(name)) for name in files]
    assert counts == [100, 65]
    assert Stories.data_sets["short_stories"].rows == 100
    everything = shared_data / "sft/alpaca_eval_605_gpt4_1106_preview.jsonl.gz"
    helpful = Stories(data={"small_prompts": str(everything)}).items("small_prompts")
    assert 0 < len(helpful) < 129
    assert {item.question for item in protocol.items("small_prompts")} & {item.question for item in helpful}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" a ", "a"),
        ("x <|response|> a <|/response|> b", "a"),
        ("a <|/response|> b <|/response|>", "a"),
        ("<|response|> a <|response|> b", "a"),
        ("<|/response|> b", ""),
        ("b <|/response|> <|response|> a", "a"),
        ("", ""),
    ],
)
def test_a_response_is_cleaned_as_in_tofu_s_code(text: str, expected: str) -> None:
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("Total rating: 4", 4),
        ("Well.\nTotal rating:\n3.5/5", 3.5),
        ("Total rating: 6", None),
        ("Total rating: (5)", None),
        ("total rating: 5", None),
        ("Total rating: 2 and Total rating: 5", 2),
        ("Total rating: -1", None),
        ("4", None),
    ],
)
def test_ratings_are_read_as_in_tofu_s_code(answer: str, rating: float | None) -> None:
    assert RATING(answer) == rating


# Values ---------------------------------------------------------------------------------------------------------


def rates(system: str, user: str) -> str:
    """The rating of a story is the number of its words, at most 5; what begins with "An" has none."""
    of_story = re.search(r"\nstory_beginning: .*\nstory_continuation: (.*)\n\Z", user, re.DOTALL)
    of_prompt = re.search(r"\nuser_question: .*\nsystem_answer: (.*)\n\Z", user, re.DOTALL)
    assert (of_story is None) != (of_prompt is None)
    text = (of_story or of_prompt)[1]  # type: ignore[index]
    return "Hm." if text.startswith("An ") else f"Total rating: {min(len(text.split()), 5)}"


def self_bleu(texts: list[str]) -> float:
    """As TOFU's code: sacrebleu of each text against all others."""
    bleu = BLEU(tokenize="13a", lowercase=True, effective_order=True)
    flat = [text.replace("\n", " ") for text in texts]
    scores = [bleu.sentence_score(one, flat[:i] + flat[i + 1 :]).score for i, one in enumerate(flat)]
    return statistics.fmean(scores)


def test_quality_and_diversity_of_cleaned_responses(tmp_path: Path, data: dict[str, str]) -> None:
    backend = Written()
    with ServedJudge(rates) as judge:
        result = measured(tmp_path / "out", backend, data=data, n=4, judge=judge.settings())
    values = {name.removeprefix("stories/"): value for name, value in result.values.items()}
    quality = [(4 + 4 + 5 + 0) / 4, (2 + 2 + 2 + 2) / 4]
    assert values["short_stories/quality"] == pytest.approx(statistics.fmean(quality))
    assert values["short_stories/quality_sd"] == pytest.approx(statistics.stdev(quality))
    assert values["small_prompts/quality"] == pytest.approx((2 + 3 + 1) / 3)
    assert values["small_prompts/quality_sd"] == 0
    assert (values["short_stories/judge_unparsed"], values["small_prompts/judge_unparsed"]) == (0, 0.25)
    bleu = [self_bleu([cleaned(text) for text in texts]) for texts in STORIES.values()]
    assert values["short_stories/self_bleu"] == pytest.approx(statistics.fmean(bleu))
    assert values["short_stories/self_bleu_sd"] == pytest.approx(statistics.stdev(bleu))
    assert values["short_stories/self_bleu_diversity"] == pytest.approx(100 - statistics.fmean(bleu))
    assert values["short_stories/empty"] == 1 / 8
    assert values["short_stories/truncated"] == 1 / 8
    assert values["small_prompts/words"] == pytest.approx((2 + 3 + 2 + 1) / 4)
    per_item = result.documents["per_item"]
    assert per_item["short_stories/quality"] == {"0": pytest.approx(3.25), "1": 2}
    assert per_item["small_prompts/self_bleu"]["0"] == pytest.approx(
        self_bleu([cleaned(x) for x in PROMPTS["What is Atlantis?"]])
    )
    assert {body["max_tokens"] for body in judge.asked} == {32}
    assert len(judge.counts) == 11  # "She sang." is there twice
    assert sorted(judge.counts.values()) == [1] * 10 + [2]
    assert {isinstance(prompt, str) for prompt in backend.asked} == {True, False}
    assert len(backend.asked) == 12


def test_prompts_without_any_rating_are_left_out_of_quality_alone(tmp_path: Path, data: dict[str, str]) -> None:
    with ServedJudge(lambda system, user: "Total rating: 9" if "Tom had" in user else "Total rating: 1") as judge:
        settings = {"data": data, "sets": ["short_stories"], "n": 4, "judge": judge.settings()}
        values = measured(tmp_path / "out", Written(), **settings).values
        judge.says = lambda system, user: "Total rating:"
        none = measured(
            tmp_path / "none", Written(), **{**settings, "limit": 1, "judge": judge.settings(seed=1)}
        ).values
    assert values["stories/short_stories/quality"] == 1
    assert values["stories/short_stories/quality_sd"] == 0
    assert values["stories/short_stories/judge_unparsed"] == 0.5
    assert values["stories/short_stories/self_bleu_sd"] > 0
    assert "stories/short_stories/quality" not in none
    assert none["stories/short_stories/judge_unparsed"] == 1
    evaluated = Evaluated("m", {"stories": Result("stories", None, "auto", {}, none, {}, {}, "", 0)})
    assert (
        "m, stories short_stories: 100% of the judge's verdicts could not be read; read some of them before the values."
        in (remarks([evaluated], []))
    )


def test_another_judge_or_variant_of_it_samples_nothing_again(tmp_path: Path, data: dict[str, str]) -> None:
    backend = Written()
    with ServedJudge(rates) as judge:
        settings = {"data": data, "n": 4, "sets": ["short_stories"]}
        measured(tmp_path / "out", backend, **settings, judge=judge.settings())
        first = len(judge.asked)
        measured(tmp_path / "out", backend, **settings, judge=judge.settings(max_new_tokens=40))
        assert (len(backend.asked), len(judge.asked)) == (8, 2 * first)
        measured(tmp_path / "other", Written(), **settings, judge=judge.settings(concurrency=2))
        assert len(judge.asked) == 2 * first  # another model that says the same, and another setting of no verdict


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 1}, "n must be a whole number of at least 2 or null, got 1; one text does not differ from itself"),
        ({"ks": [1]}, "ks must be null for all responses to a prompt, got (1,)"),
        ({"asked_in": "template"}, "stories.asked_in: expected"),
        ({"judge": {"votes": "a"}}, "stories.judge.votes: expected int, got 'a'"),
        ({"judge": 3}, "stories.judge must be a mapping of settings"),
        (
            {"variant": "papers_code", "judge": {"model": "m", "template": "chatml"}},
            "measure.stories: judge.template chatml: judge_format papers_code asks the judge in its own chat template",
        ),
        (
            {"variant": "papers_code", "judge": "endpoint:http://h#m"},
            "measure.stories: judge_format papers_code leaves out the beginning of the judge's turn, which an endpoint",
        ),
    ],
)
def test_a_bad_setting_is_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_spec({"stories": settings})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_stories_without_a_file_say_where_it_is() -> None:
    with pytest.raises(UserError) as error:
        Stories().items("short_stories")
    assert str(error.value) == (
        "stories.data.short_stories: these rows are on no hub; name a file of rows with prompt (the beginning of a "
        "story), such as that of github.com/anonymous2026icml/TOFU: data/short-stories.parquet"
    )


# Real models ----------------------------------------------------------------------------------------------------


@pytest.fixture
def chatting(shared_data: Path, tmp_path: Path) -> Path:
    """stories260K, with a chat template whose text begins with the first token, as Llama's do."""
    place = tmp_path / "judge"
    place.mkdir()
    source = shared_data / "models/stories260K"
    for file in source.iterdir():
        if file.is_file() and file.name != "tokenizer_config.json":
            (place / file.name).symlink_to(file)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{{ bos_token }}{% for turn in messages %}[{{ turn['role'] }}] {{ turn['content'] }}"
        "{% if turn['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def test_the_public_code_s_judge_has_its_first_token_twice_and_no_turn(shared_data: Path, chatting: Path) -> None:
    settings = ChatSettings(model=str(chatting), device="cpu")
    case = Case(({"role": "user", "content": "Ann."},), "She sang.", details={"is_story": True})
    judges: list[Any] = [Stories(judge=settings, variant=name).make_judge() for name in ("paper", "papers_code")]
    ours, code = ([*judge.prompt(case)] for judge in judges)
    tokenizer: Any = Model("m", "m", lambda: str(chatting), Path()).tokenizer
    [turn] = judges[0].asks.asked(case)
    assert ours == tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False)
    assert ours.count(tokenizer.bos_token_id) == 1
    assert code[:2] == [tokenizer.bos_token_id] * 2
    assert code[1:] == tokenizer.apply_chat_template([turn], return_dict=False)
    assert judges[0].identity != judges[1].identity
    assert isinstance(judges[1], ChatJudge)
    judges[1].check()
    bare = ChatSettings(model=str(shared_data / "models/stories260K"), device="cpu")
    with pytest.raises(
        UserError, match=r"judge_format papers_code asks the judge in its own chat template, and .* has none"
    ):
        Stories(judge=bare, variant="papers_code").make_judge().check()


def test_a_template_that_fails_is_told_in_the_public_code_s_format_too(chatting: Path) -> None:
    """It is rendered in our sandbox, within its bounds, as every template is."""
    config = json.loads((chatting / "tokenizer_config.json").read_text())
    (chatting / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ 'a' * 10 ** 8 }}"}))
    judge: Any = Stories(judge=ChatSettings(model=str(chatting), device="cpu"), variant="papers_code").make_judge()
    with refused("judge: its chat template fails on turns of user .it makes a text or a list that is larger"):
        judge.prompt(Case(({"role": "user", "content": "Ann."},), "She sang.", details={"is_story": True}))


def test_a_judge_that_dies_is_gone_on_with_and_nothing_is_asked_twice(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """stories260K continues stories, a server rates them; the server fails once, and once the process is stopped."""
    monkeypatch.chdir(tmp_path)
    rows = (shared_data / "eval/tofu_short_stories.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    Path("stories.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def says(system: str, user: str) -> str:
        return f"Total rating: {len(user) % 6}"

    with ServedJudge(says, dies_after=3) as judge:
        words = [str(shared_data / "models/stories260K"), "--protocol", "stories", "--out", "side", "--n", "3"]
        words += ["--data", "stories.short_stories=stories.jsonl", "--set", "stories.sets=[short_stories]"]
        words += ["--set", f"stories.judge={json.dumps(judge.settings())}", "--max_new_tokens", "12"]
        with pytest.raises(UserError, match="no such key"):
            evaluate(words)
        assert (len(judge.asked), sorted(judge.counts.values())) == (3, [1, 1, 1])
        judge.dies_after = None
        with monkeypatch.context() as patched:
            patched.setattr(Endpoint, "complete", _stopped_after(2))
            with pytest.raises(KeyboardInterrupt):
                evaluate(words)
        capsys.readouterr()
        assert evaluate(words) == 0
        assert len(judge.asked) <= 9 + 1  # one may have been under way when the process was stopped
        asked = len(judge.asked)
        assert evaluate(words) == 0
        assert len(judge.asked) == asked
    shown = capsys.readouterr().out
    assert re.search(r"^  quality +\d\.\d\d \[\d\.\d\d, \d\.\d\d\]$", shown, re.M)
    assert re.search(r"^  judge unread +0\.000$", shown, re.M)
    assert "table.csv, table.md, stories-diversity.png" in shown
    expected = [json.loads(line) for path in Path("side").glob("*/scores/*.jsonl") for line in path.open()][1:]
    assert len({(line["item"], line["key"]) for line in expected}) == len(expected) == 9
    assert {line["note"] for line in expected} == {f"Total rating: {line['answer']}" for line in expected}


def _stopped_after(count: int) -> Any:
    """Endpoint.complete, stopped as by Ctrl-C behind so many responses."""
    complete = Endpoint.complete

    def stopped(self: Endpoint, requests: Iterable[Request]) -> Iterator[Response]:
        for number, response in enumerate(complete(self, requests), start=1):
            yield response
            if number == count:
                raise KeyboardInterrupt

    return stopped
