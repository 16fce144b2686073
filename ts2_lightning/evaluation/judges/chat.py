"""Judges that are language models: asked in a chat, or in plain text as classifiers are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ts2_lightning.data.cache import cache_directory
from ts2_lightning.data.formats import Conversation, Message
from ts2_lightning.evaluation.judges.base import OF_NO_VERDICT, AskedJudge, Case, JudgeCost, Verdict
from ts2_lightning.evaluation.judges.questions import JudgePrompt, Parser
from ts2_lightning.evaluation.judges.spending import (
    Metered,
    Prices,
    check_affordable,
    current_spending,
    estimated_tokens,
)
from ts2_lightning.evaluation.loading import check_device
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.prompts import Question
from ts2_lightning.generation import GenerationSettings
from ts2_lightning.generation.backends import Backend, check_backend
from ts2_lightning.generation.backends.endpoint import PREFIX, Address, Endpoint
from ts2_lightning.generation.backends.json_client import ClientSettings, Usage
from ts2_lightning.generation.backends.vllm import PREFIX as VLLM
from ts2_lightning.generation.backends.vllm import Installation
from ts2_lightning.generation.requests import Asked, Request
from ts2_lightning.model_limits import limits_of
from ts2_lightning.ranges import COUNT, NOT_NEGATIVE, NULL, POSITIVE, SEED, check_numbers
from ts2_lightning.runs.stamps import digest, file_stamps
from ts2_lightning.types import RowError, UserError

RETRY_TEMPERATURE = 1.0
"""At temperature 0 another seed changes nothing, so an answer that could not be read is sampled at this one."""


@dataclass(frozen=True)
class ChatSettings:
    """Which language model judges, and how it is asked.

    Attributes:
        model: a transformers directory, a name on the hub, or `endpoint:URL#MODEL`. Null names none.
        backend: what makes the answers of a model that is loaded: `transformers`, or `vllm:PYTHON`.
        vllm_args: arguments of vLLM's engine.
        template: chat template; `auto`: the model's own.
        device: where transformers computes; null takes a GPU if there is one.
        batch_size: answers at a time; no verdict depends on it.
        temperature: temperature of the answers; 0 takes the most probable token.
        max_new_tokens: tokens of an answer, at most.
        votes: number of times that each case is asked; the value is the mean. More than one needs a temperature.
        seed: seed of the answers.
        prompt_price: dollars for a million tokens that the judge reads; null: it costs nothing, or nobody says what.
        completion_price: dollars for a million tokens that it writes.
        api_key_env: environment variable that has the key of an endpoint; empty sends none.
        key_over_http: whether that key may travel unencrypted to another machine.
        concurrency: calls of an endpoint at the same time.
        timeout: seconds that an answer of an endpoint may take.
        leave_out: fields that the endpoint does not take, of `seed` and `logprobs`.

    Raises:
        UserError: a number out of its range, or settings that do not go together.
    """

    model: str | None = None
    backend: str = field(default="transformers", metadata=OF_NO_VERDICT)
    vllm_args: dict[str, Any] | None = field(default=None, metadata=OF_NO_VERDICT)
    template: str = "auto"
    device: str | None = field(default=None, metadata=OF_NO_VERDICT)
    batch_size: int = field(default=16, metadata=OF_NO_VERDICT)
    temperature: float = 0.0
    max_new_tokens: int = 512
    votes: int = 1
    seed: int = 0
    prompt_price: float | None = field(default=None, metadata=OF_NO_VERDICT)
    completion_price: float | None = field(default=None, metadata=OF_NO_VERDICT)
    api_key_env: str = field(default=ClientSettings().api_key_env, metadata=OF_NO_VERDICT)
    key_over_http: bool = field(default=False, metadata=OF_NO_VERDICT)
    concurrency: int = field(default=ClientSettings().concurrency, metadata=OF_NO_VERDICT)
    timeout: float = field(default=ClientSettings().timeout, metadata=OF_NO_VERDICT)
    leave_out: tuple[str, ...] = field(default=(), metadata=OF_NO_VERDICT)

    def __post_init__(self) -> None:
        if self.model is not None and not self.model.strip():
            raise UserError("judge.model is empty; name a directory, a model on the hub or an endpoint")
        prices = dict.fromkeys(("prompt_price", "completion_price"), (NOT_NEGATIVE, NULL))
        counts = dict.fromkeys(("batch_size", "max_new_tokens", "votes", "concurrency"), COUNT)
        check_numbers("judge.", self, temperature=NOT_NEGATIVE, timeout=POSITIVE, seed=SEED, **counts, **prices)
        if self.votes > 1 and self.temperature == 0:
            raise UserError(
                f"judge.votes: at temperature 0 all {self.votes} votes are the same; set judge.temperature above 0, "
                "such as 0.7, or votes to 1"
            )
        if (self.prompt_price is None) != (self.completion_price is None):
            raise UserError("judge: prompt_price and completion_price go together; set both, 0 for what is free")
        try:
            check_backend(self.backend)
            if self.is_endpoint:
                Address.parse(str(self.model))
        except UserError as error:
            raise UserError(f"judge.{'model' if self.is_endpoint else 'backend'}: {error}") from error
        is_vllm = self.backend.startswith(VLLM)
        if self.is_endpoint and (is_vllm or self.template != "auto"):
            name = "backend" if is_vllm else "template"
            raise UserError(f"judge.{name}: is not for {PREFIX}URL#MODEL, whose server sees to that; leave it out")
        if self.vllm_args is not None and not is_vllm:
            raise UserError("judge.vllm_args: is for the backend vllm:PYTHON; leave it out, or name that backend")

    @property
    def is_endpoint(self) -> bool:
        """Whether a server is asked."""
        return self.model is not None and self.model.startswith(PREFIX)

    @property
    def prices(self) -> Prices | None:
        """What tokens cost; None where it is not said."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        return Prices(self.prompt_price, self.completion_price)


class ChatJudge(AskedJudge):
    """A language model that is asked for a verdict, and whose answer is read.

    It is asked with its own chat template, which begins its turn once, and gets its special tokens once. Public code of
    the papers' judges leaves out the beginning of the turn, or adds the first token twice; nothing here does either. A
    prompt that is `continued` is plain text.

    A thought before the answer, up to `</think>`, is not read. An answer that cannot be read is sampled once more, with
    another seed and at temperature 1 where the first was made at 0, since the most probable tokens would be the same.
    Both are counted. Its verdicts are kept by model, prompt and decoding, for all protocols and models alike; another
    parser reads what is there.

    The model is loaded when the first answer is missing, and let go of afterwards.

    Args:
        settings: which model, and how it is asked.
        prompt: what it is asked.
        parser: reads its answers.
        model: model that is asked instead of the one that the settings name; for models in memory.

    Raises:
        UserError: the settings name no model.
    """

    name: ClassVar[str] = "chat"

    def __init__(self, settings: ChatSettings, prompt: JudgePrompt, parser: Parser, model: Model | None = None) -> None:
        if settings.model is None and model is None:
            raise UserError(f"{prompt.name}: no judge is named; name one: --judge MODEL, or {PREFIX}URL#NAME")
        self.how = settings
        self.asks = prompt
        self.parser = parser
        self.votes = settings.votes
        self._model = model or judge_model(settings)
        self._prompts: dict[Asked, Asked] = {}
        self._served: Endpoint | None = None

    @property
    def title(self) -> str:
        """The name of the model, for people."""
        return self._model.label or self._model.title

    @cached_property
    def identity(self) -> Any:
        """The model, what it is asked and with which decoding, and how its answers are read."""
        decoding = [self.how.temperature, self.how.max_new_tokens, self.how.votes, self.how.seed]
        return [self._who, decoding, asdict(self.asks), self.parser.identity]

    @property
    def _who(self) -> Any:
        return [self._model.identity, self._model.template, *self._model.asked_with]

    @property
    def directory(self) -> Path:
        """The directory that has its `responses`: one for each model, whatever it is asked."""
        return cache_directory() / "judges" / f"{self.name}-{digest(self._who)[:12]}"

    @cached_property
    def settings(self) -> GenerationSettings:
        """What its answers are made with."""
        return self._model.generation_settings(self.how.max_new_tokens, self.how.seed, self.how.temperature)

    @property
    def again(self) -> GenerationSettings:
        """What an answer that cannot be read is made anew with, once: another seed, and a temperature."""
        decoder = replace(self.settings.decoder, temperature=self.how.temperature or RETRY_TEMPERATURE)
        return replace(self.settings, decoder=decoder, seed=(self.how.seed + 1) % 2**32)

    def prompt(self, case: Case) -> Asked:
        """What it is asked of a case: messages or text for a server, else token ids."""
        asked = self.asks.asked(case)
        if self._model.endpoint is not None:
            return asked
        key = asked if isinstance(asked, str) else tuple((turn["role"], turn["content"]) for turn in asked)  # type: ignore[index]
        if key not in self._prompts:
            self._prompts[key] = tuple(self._ids(asked))  # type: ignore[index]
        return self._prompts[key]  # type: ignore[index]

    def _ids(self, asked: Asked) -> Sequence[int]:
        model = self._model
        if isinstance(asked, str):  # whatever a response has in it is text
            tokenizer: Any = model.tokenizer
            return tokenizer(asked, split_special_tokens=True)["input_ids"]
        turns = [Message(role=turn["role"], content=turn["content"]) for turn in asked]  # type: ignore[index]
        try:
            return Question(Conversation(turns)).encode(model.chat_template).ids
        except RowError as error:
            raise UserError(f"judge {model.name}: its chat template does not take the prompt ({error})") from error

    def read(self, answer: str, case: Case) -> float | None:
        """The value that an answer has, read behind its thought if it has one; None if none can be read."""
        return self.parser(without_thought(answer))

    # Before it is asked -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Looks whether the judge can be asked, and whether what it costs is known where there is a limit.

        Raises:
            UserError: naming what is wrong: no such model, server, key, interpreter or template.
        """
        self._check_prices()
        if self._model.endpoint is not None:
            self._model.make_backend(1).check([Request("", 0, self.settings)])
            return
        _ = self._model.limits
        check_device(self._model.device)
        self._ids("?" if self.asks.continued else JudgePrompt("", "?", "?" * bool(self.asks.system)).asked(_NOTHING))
        if self._model.backend.startswith(VLLM):
            Installation.of(str(Path(self._model.backend.removeprefix(VLLM)).expanduser()))

    def _check_prices(self) -> None:
        if current_spending() is not None and self._model.endpoint is not None and self.how.prices is None:
            raise UserError(
                f"{self.asks.name}: --max_cost needs to know what {self.title} costs; say it with --price IN,OUT, "
                "in dollars for a million tokens, or judge.prompt_price and judge.completion_price"
            )

    def cost(self, cases: Sequence[Case]) -> JudgeCost:
        """What judging takes, of what is not on disk already: answers that are made twice are not counted."""
        return self._cost(self.missing(cases))

    def _cost(self, missing: Sequence[Request]) -> JudgeCost:
        prompts = sum(estimated_tokens(request.prompt) for request in missing)
        new, prices = len(missing) * self.how.max_new_tokens, self.how.prices
        dollars = None if prices is None else prices.of(prompts, new)
        return JudgeCost(len(missing), prompts, new, dollars, self._model.endpoint is not None)

    def plan(self, cost: JudgeCost) -> str:
        """One line on what judging takes.

        Args:
            cost: what `cost` returned.
        """
        about = "about " if cost.is_estimate else ""
        return (
            f"{self.asks.name}: {cost.calls:,} verdicts by {self.title}, {about}{cost.prompt_tokens or 0:,} prompt "
            f"tokens and at most {cost.new_tokens:,} new ones{_dollars(cost.dollars)}"
        )

    # Asking -----------------------------------------------------------------------------------------------------

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts of cases, in their order. A line says what it takes, before it begins.

        Raises:
            UserError: a prompt that the judge does not take, a server that does not answer, or more cost than
                `spending_limit` leaves.
        """
        missing = self.missing(cases)
        if missing:
            self._check_prices()
            self._check_lengths(missing)
            check_affordable(self.asks.name, self._cost(missing))
            rank_zero_info(self.plan(self._cost(missing)))
        try:
            return super().judge(cases)
        finally:
            self._say_what_was_used()
            self._model.forget()

    def _say_what_was_used(self) -> None:
        """Says what a server has counted, where one was asked that counts."""
        usage = self._served.usage if self._served is not None else Usage()
        if usage.prompt_tokens:
            prices, counted = self.how.prices, (usage.prompt_tokens, usage.completion_tokens)
            dollars = _dollars(None if prices is None else prices.of(*counted))
            tokens = f"{counted[0]:,} prompt tokens and {counted[1]:,} new ones"
            rank_zero_info(f"{self.asks.name}: {self.title} has counted {tokens}{dollars}")
        self._served = None

    def _check_lengths(self, missing: Sequence[Request]) -> None:
        """Raises UserError for prompts that leave a local judge no room to answer: cut off they would be others."""
        loaded: Any = self._model.__dict__.get("network")
        if self._model.endpoint is None:
            limits = self._model.limits if loaded is None else limits_of(loaded.config)
            lengths = [len(request.prompt) for request in missing]
            long = sum(limits.context is not None and length >= limits.context for length in lengths)
            if long:
                raise UserError(
                    f"{self.asks.name}: {long:,} of {len(lengths):,} prompts for the judge leave no room in "
                    f"{limits.context_text}; the longest has {max(lengths):,}. Take a judge with a longer context, or "
                    "shorter responses"
                )

    def make_backend(self) -> Backend:
        """What makes its answers; it stops at the limit of `spending_limit`."""
        backend = self._model.make_backend(self.how.batch_size)
        self._served = backend if isinstance(backend, Endpoint) else None
        prices = self.how.prices
        return backend if prices is None else Metered(backend, prices, self.asks.name)


_NOTHING = Case((), "")


def _dollars(dollars: float | None) -> str:
    """The end of a line on what judging takes."""
    return "" if dollars is None else f": ${dollars:,.2f}" if dollars >= 0.005 or not dollars else ": < $0.01"


def without_thought(answer: str) -> str:
    """What an answer says behind the thought that some models write first; nothing where the thought does not end.

    >>> without_thought("<think>Rating: 2? No.</think> Rating: 4"), without_thought("4"), without_thought("<think> 2")
    (' Rating: 4', '4', '')
    """
    _, end, behind = answer.rpartition("</think>")
    return behind if end or not answer.lstrip().startswith("<think>") else ""


def judge_model(settings: ChatSettings) -> Model:
    """The model that judges; nothing is loaded, and no server is asked.

    Args:
        settings: which model, and how it is asked.

    Raises:
        UserError: an address, a key or a field that cannot be used.
    """
    name = str(settings.model)
    if settings.is_endpoint:
        address = Address.parse(name)
        client = ClientSettings(
            timeout=settings.timeout, concurrency=settings.concurrency, api_key_env=settings.api_key_env,
            key_over_http=settings.key_over_http,
        )  # fmt: skip
        make = partial(Endpoint, address, client, settings.leave_out)
        make().close()  # what cannot be is wrong before hours of sampling, not after
        identity: Any = ["endpoint", address.url, address.model]
        return Model(name, identity, lambda: name, Path(), label=address.model, endpoint=make)
    path = Path(name).expanduser()
    place = str(path) if path.exists() else name
    return Model(
        name=name,
        identity=file_stamps(place) or place,
        locate=lambda: place,
        out=Path(),
        template=settings.template,
        device=settings.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        backend=settings.backend,
        vllm_args=settings.vllm_args or {},
    )
