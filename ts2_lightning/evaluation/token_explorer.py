"""Responses token by token, as several models see them: what training did to the distributions.

Every model responds to the same questions, and reads what each model with its tokenizer has responded, after its own
prompt. What is there of this is not made again: it lies in DIRECTORY/tokens of each model.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.evaluation.loading import supervised_logits
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.reading import response_batch
from ts2_lightning.generation.requests import Request, Response
from ts2_lightning.ops import LogitRows, rows_per_block, token_statistics, top_probabilities
from ts2_lightning.pages import SeenText, Tokens, TokenView
from ts2_lightning.runs.stamps import digest
from ts2_lightning.runs.writing import write_json, write_whole
from ts2_lightning.types import UserError

DIRECTORY = "tokens"

TOP = 8
"""Most probable tokens that are kept of each distribution."""

AT_MOST = 2048
"""Tokens of a response that are looked at."""

_STATISTICS = ("entropy", "support_size", "tail_mass", "gold_probability", "gold_rank")
_KINDS = {
    **dict.fromkeys(("entropy", "tail_mass", "probability", "top_probabilities"), np.float32),
    **dict.fromkeys(("support_size", "rank", "top"), np.int32),
}
_FORMAT = 1  # of what is kept; raise it when its numbers change
_NOTES = (
    "Each model reads its own prompt and then the response, whoever has written it. Probabilities are those of the "
    "softmax at temperature 1, before anything is cut off, and the support is that of sparsemax of the same logits.",
)

Reading = dict[str, Any]
"""Numbers of T tokens: the names of `pages.TokenView`, with token ids for `top`."""


def read_tokens(network: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Reading:
    """How a model sees the tokens of a response, by one forward pass; logits are made some rows at a time.

    Args:
        network: model in evaluation mode.
        prompt: token ids that the response follows, at least one.
        response: T token ids.

    Returns:
        `entropy`, `tail_mass` and `probability` [T] in float32, `support_size` and `rank` [T] in int32, `top` [T, k]
        in int32 and `top_probabilities` [T, k] in float32, with k = 8 or the vocabulary if that is smaller.

    Raises:
        UserError: more tokens than the model has positions for, or one that it has not.
    """
    if not len(response):
        return {name: np.zeros((0, TOP) if "top" in name else 0, kind) for name, kind in _KINDS.items()}
    batch = response_batch(prompt, response)
    parts = [
        part
        for here, logits in supervised_logits(network, batch)
        for part in _read_rows(logits, batch["labels"][here].to(logits.device))
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read_rows(logits: torch.Tensor, labels: torch.Tensor) -> Iterator[Reading]:
    size = rows_per_block(logits.shape[-1], logits.device)
    for start in range(0, len(logits), size):
        rows = LogitRows(logits[start : start + size].contiguous(), labels[start : start + size])
        k = min(TOP, logits.shape[-1])
        values = token_statistics(rows, names=_STATISTICS)
        of_rows = {
            **values,
            "probability": values["gold_probability"],
            "rank": values["gold_rank"],
            "top": rows.top(k)[1],
            "top_probabilities": top_probabilities(rows, k),
        }
        yield {name: of_rows[name].cpu().numpy().astype(kind) for name, kind in _KINDS.items()}


def piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as it stands within a text, with the space before it if there is one.

    Example:
        >>> from ts2_lightning.toyworld import build_tokenizer
        >>> tokenizer = build_tokenizer()
        >>> piece(tokenizer, tokenizer("fruit")["input_ids"][-1])
        ' fruit'
    """
    raw = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(raw, str):
        return f"<{token}>"  # the model has more rows than the tokenizer has tokens
    alone, twice = (str(tokenizer.decode([token] * times, clean_up_tokenization_spaces=False)) for times in (1, 2))
    if "\ufffd" in alone:
        return raw  # some bytes of a character
    return f" {alone}" if twice == f"{alone} {alone}" else alone


@dataclass(frozen=True)
class _Heard:
    """A model with its responses."""

    model: Model
    prompts: Sequence[Sequence[int]]
    responses: Sequence[Response]

    @cached_property
    def vocabulary(self) -> str:
        """Tells tokenizers apart: models that have the same one read each other's responses."""
        return digest(sorted(self.model.tokenizer.get_vocab().items()))


class Explorer:
    """What models respond to some questions, and how each of them sees it.

    Args:
        questions: questions, as people read them.

    Example:
        >>> from ts2_lightning.evaluation import Model
        >>> from ts2_lightning.generation import Request
        >>> from ts2_lightning.toyworld import build_tokenizer
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> tokenizer = build_tokenizer()
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> network = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
        >>> model = Model.in_memory(network, tokenizer)
        >>> prompt = tuple(tokenizer("name a fruit")["input_ids"])
        >>> explorer = Explorer(["name a fruit"])
        >>> explorer.listen(model, [Request(prompt, 0, model.generation_settings(max_new_tokens=4))])
        >>> [text] = explorer.section("Tokens").texts
        >>> text.name, len(text.tokens), len(text.views[0].entropy)
        ('response of model', 4, 4)
    """

    def __init__(self, questions: Sequence[str]) -> None:
        self._questions = list(questions)
        self._heard: list[_Heard] = []

    @staticmethod
    def can_see(model: Model) -> bool:
        """Whether a model's logits can be had: not those of a served model, nor of one of which only responses are."""
        return model.endpoint is None and model.responses is None

    @staticmethod
    def has_heard(model: Model, requests: Sequence[Request]) -> bool:
        """Whether the responses are there from an earlier time, so that a model need not be loaded for them."""
        kept = _kept_responses(_responses_file(model, requests))
        return all(request.key in kept for request in requests)

    def listen(self, model: Model, requests: Sequence[Request]) -> None:
        """Hears what a model responds. Made anew are the few that are asked for, with their token ids.

        Args:
            model: a model that `can_see`.
            requests: one for each question; prompts are token ids.

        Raises:
            UserError: a prompt that the model does not take.
        """
        if len(requests) != len(self._questions):
            raise ValueError(f"{len(self._questions)} questions, {len(requests)} requests")
        prompts = [[token for token in request.prompt if isinstance(token, int)] for request in requests]
        self._heard.append(_Heard(model, prompts, _responses(model, requests)))

    def section(self, title: str, say: Callable[[str], None] | None = None, forget: bool = False) -> Tokens:
        """What was heard, as every model with the same tokenizer sees it.

        Args:
            title: heading.
            say: takes a line for what a model cannot read.
            forget: let go of each model once it has read, so that one at a time is loaded.
        """
        views: dict[int, dict[tuple[int, int], Reading]] = {}
        for place in reversed(range(len(self._heard))):  # the last is loaded already
            views[place] = self._readings(place, say)
            if forget:
                self._heard[place].model.forget()
        pieces = _Pieces()
        texts = []
        for question in range(len(self._questions)):
            for writer, heard in enumerate(self._heard):
                seen = {
                    place: pieces.view(heard, of_model[question, writer])
                    for place, of_model in sorted(views.items())
                    if (question, writer) in of_model
                }
                response = heard.responses[question]
                tokens = [pieces.place(heard, token) for token in _shown(response)]
                texts.append(SeenText(question, f"response of {heard.model.title}", tokens, seen, _remark(response)))
        notes = [*_NOTES, *self._notes()]
        return Tokens(title, self._questions, [heard.model.title for heard in self._heard], pieces.texts, texts, notes)

    def _readings(self, place: int, say: Callable[[str], None] | None) -> dict[tuple[int, int], Reading]:
        """How a model sees each response that it can read, by question and writer."""
        reader = self._heard[place]
        readings = {}
        for question, prompt in enumerate(reader.prompts):
            for writer, heard in enumerate(self._heard):
                if heard.vocabulary == reader.vocabulary:
                    try:
                        readings[question, writer] = _reading(reader.model, prompt, _shown(heard.responses[question]))
                    except UserError as error:
                        if say is not None:
                            say(f"{reader.model.title} cannot read the response of {heard.model.title}: {error}")
        return readings

    def _notes(self) -> list[str]:
        if len({heard.vocabulary for heard in self._heard}) < 2:
            return []
        return ["Models with different tokenizers do not see each other's responses."]


def _shown(response: Response) -> tuple[int, ...]:
    return (response.ids or ())[:AT_MOST]


def _remark(response: Response) -> str:
    count = len(response.ids or ())
    parts = [
        f"The first {AT_MOST:,} of {count:,} tokens." if count > AT_MOST else "",
        "Cut off at the token limit." if response.finish == "length" else "",
    ]
    return " ".join(filter(None, parts))


class _Pieces:
    """Every token that occurs, of one tokenizer or of several, once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[tuple[str, int], int] = {}

    def place(self, of: _Heard, token: int) -> int:
        """The place of a token of a model's tokenizer."""
        key = (of.vocabulary, token)
        if key not in self._places:
            self._places[key] = len(self.texts)
            self.texts.append(piece(of.model.tokenizer, token))
        return self._places[key]

    def view(self, of: _Heard, reading: Reading) -> TokenView:
        """A reading with places instead of token ids."""
        ids, inverse = np.unique(reading["top"], return_inverse=True)
        places = np.array([self.place(of, int(token)) for token in ids], dtype=np.int32)
        return TokenView(**{**reading, "top": places[inverse].reshape(reading["top"].shape)})


# What is kept ---------------------------------------------------------------------------------------------------------


def _responses(model: Model, requests: Sequence[Request]) -> list[Response]:
    """The responses to requests, with token ids. The store of an evaluation has none, so they are made once more: a
    response follows from its request.
    """
    place = _responses_file(model, requests)
    kept = _kept_responses(place)
    if any(request.key not in kept for request in requests):
        backend = model.make_backend(len(requests))
        for settings in dict.fromkeys(request.settings for request in requests):
            asked = {request.key: request for request in requests if request.settings == settings}
            kept |= {response.key: response for response in backend.complete(list(asked.values()))}
        _write(
            place,
            lambda: write_json(place, {key: {"finish": one.finish, "ids": one.ids} for key, one in kept.items()}),
        )
    return [kept[request.key] for request in requests]


def _responses_file(model: Model, requests: Sequence[Request]) -> Path:
    return _place(model, "responses", [request.key for request in requests]).with_suffix(".json")


def _kept_responses(place: Path) -> dict[str, Response]:
    try:
        plain = json.loads(place.read_text(encoding="utf-8"))
        return {
            key: Response(key, "", len(one["ids"]), one["finish"], ids=tuple(map(int, one["ids"])))
            for key, one in plain.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # not there, or not whole: made again


def _reading(model: Model, prompt: Sequence[int], response: Sequence[int]) -> Reading:
    place = _place(model, "seen", [prompt, response]).with_suffix(".npz")
    try:
        with np.load(place, allow_pickle=False) as kept:
            reading = {name: kept[name].astype(kind) for name, kind in _KINDS.items()}
        if all(len(values) == len(response) for values in reading.values()):
            return reading
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or not whole: made again
    reading = read_tokens(model.network, prompt, response)
    _write(place, lambda: write_whole(place, lambda beside: _save(beside, reading)))
    return reading


def _save(path: Path, reading: Reading) -> None:
    with path.open("wb") as stream:  # a path would get another ending
        np.savez_compressed(stream, **reading)


def _place(model: Model, kind: str, what: object) -> Path:
    key = digest([_FORMAT, AT_MOST, TOP, model.identity, model.decoding, what])
    return model.out / DIRECTORY / f"{kind}-{key[:16]}"


def _write(place: Path, write: Callable[[], object]) -> None:
    """Writes a file, unless the model is one in memory, which has no directory."""
    if place.parent.parent != Path():
        write()
