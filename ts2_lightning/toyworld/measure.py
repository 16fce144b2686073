"""The exact measures of the toy world: which requests and items they are means of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ts2_lightning.evaluation.distributions import DECODINGS
from ts2_lightning.evaluation.measure import Measure, Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.generation import DECODING, Decoder
from ts2_lightning.ranges import POSITIVE, check_numbers
from ts2_lightning.toyworld import CLOSED_TASKS, Family, Item, World, held_out_items, load_world
from ts2_lightning.toyworld.descriptions import DECODED_VALUES, VALUES
from ts2_lightning.toyworld.domain import ToyWorldDomain
from ts2_lightning.toyworld.exact import (
    DECODERS,
    SAMPLES,
    Scored,
    Style,
    encode_exchange,
    end_probability,
    expected_distinct,
    matched_temperature,
    plausible_first_tokens,
    response_measures,
    score,
    shape_measures,
    token_log_probabilities,
)
from ts2_lightning.types import UserError
from ts2_lightning.values import Value


@dataclass(frozen=True)
class ToyWorld(Measure):
    """Validity, diversity and shape where all plausible answers are known, under the decoding of the spec."""

    name: ClassVar[str] = "toyworld"
    usual: ClassVar[bool] = True
    values: ClassVar[tuple[Value, ...]] = VALUES
    planes: ClassVar[tuple[tuple[str, str], ...]] = (
        ("toyworld/seen/distinct_t1", "toyworld/seen/validity_t1"),
        ("toyworld/seen/distinct_papers", "toyworld/seen/validity_papers"),
    )
    note: ClassVar[str] = (
        "On the toy world an answer is valid if it is plausible and in the taught form. All answers are known there, "
        "so that its values are exact; nothing is sampled. T is the temperature."
    )

    def inputs(self, model: Model) -> Any:
        """A tokenizer or template that is not the model's own."""
        return model.asked_with or None

    def check_model(self, model: Model) -> None:
        """Raises UserError unless it is a model of the toy world."""
        _check_domain(self.name, model)

    def measure(self, model: Model, beside: Path) -> Measured:
        """All of `evaluate_toyworld`."""
        return Measured(evaluate_toyworld(model.network, model.tokenizer, load_world(), _style(model), model.decoding))


@dataclass(frozen=True)
class ToyWorldDecoded(Measure):
    """Exact validity and diversity under one decoder, whose settings may be an axis of a grid.

    Attributes:
        temperature: temperature behind the projection of the decoding.
        top_k: number of most probable tokens that are kept; 0 keeps all.
        top_p: sum of probabilities that the fewest kept tokens reach; 1 keeps all.
    """

    name: ClassVar[str] = "toyworld_decoded"
    values: ClassVar[tuple[Value, ...]] = DECODED_VALUES
    planes: ClassVar[tuple[tuple[str, str], ...]] = (
        ("toyworld_decoded/seen/distinct", "toyworld_decoded/seen/validity"),
    )

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Raises UserError for a number out of its range."""
        check_numbers("", self, **{**DECODING, "temperature": (POSITIVE,)})

    def inputs(self, model: Model) -> Any:
        """A tokenizer or template that is not the model's own."""
        return model.asked_with or None

    def check_model(self, model: Model) -> None:
        """Raises UserError unless it is a model of the toy world."""
        _check_domain(self.name, model)

    def measure(self, model: Model, beside: Path) -> Measured:
        """Means of `response_measures` over the held-out requests of the open families, seen and unseen apart."""
        world = load_world()
        decoder = Decoder(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        values: dict[str, float] = {}
        for split, families in (("seen", world.seen), ("unseen", world.unseen)):
            scored, _ = _score_families(model.network, model.tokenizer, world, families, _style(model))
            measures = response_measures(scored.projected(DECODINGS[model.decoding]), decoder)
            values |= {f"{split}/{name}": measures[name].mean().item() for name in ("validity", "distinct", "coverage")}
        return Measured(values)


def _check_domain(measure: str, model: Model) -> None:
    if not isinstance(model.domain, ToyWorldDomain):
        raise UserError(f"{measure}: {model.name} is not a model of the toy world; leave the measure out")


def _style(model: Model) -> Style:
    return "text" if model.is_asked_in_text else "chat"


def _score_families(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, families: Sequence[Family], style: Style
) -> tuple[Scored, list[Family]]:
    """All plausible responses to all held-out requests, and the family of each prompt."""
    prompts = [(family, request) for family in families for request in family.held_out]
    exchanges, owners = [], []
    for i, (family, request) in enumerate(prompts):
        for answer in family.answers:
            exchanges.append(encode_exchange(tokenizer, world, request, answer, style))
            owners.append(i)
    return score(model, exchanges, owners), [family for family, _ in prompts]


def _family_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    families: Sequence[Family],
    style: Style,
    projection: Decoder,
) -> dict[str, float]:
    """Means over the held-out requests of the families; nan where a value is not defined for one of them.

    The others alone would be those that a model happens to get right, not the same for all models.
    """
    of_model, owners = _score_families(model, tokenizer, world, families, style)
    scored = of_model.projected(projection)
    out: dict[str, float] = {}
    taught = torch.tensor([len(family.taught) for family in owners])
    for name, decoder in DECODERS.items():
        measures = response_measures(scored, decoder)
        out |= {f"{key}_{name}": values.mean().item() for key, values in measures.items()}
        for k in sorted(set(taught.tolist()) - {0}):
            out[f"distinct_{name}_k{k}"] = measures["distinct"][taught == k].mean().item()
    prompts = len(owners)
    first = scored.first[[int((scored.prompt == i).nonzero()[0, 0]) for i in range(prompts)]]
    logits = of_model.logits[first]
    plausible = torch.stack([plausible_first_tokens(tokenizer, family, logits.shape[-1]) for family in owners])
    out |= {k: v.mean().item() for k, v in shape_measures(logits, plausible, projection).items()}
    if style == "chat":
        out["end_probability"] = end_probability(scored).mean().item()
    temperature = out["temperature_matched"] = matched_temperature(scored)
    out["distinct_matched"] = math.nan
    if not math.isnan(temperature):
        matched = response_measures(scored, Decoder(temperature=temperature))
        out["distinct_matched"] = matched["distinct"].mean().item()
    base = [expected_distinct(torch.tensor(list(family.answers.values()))).sum() for family in owners]
    out["distinct_base"] = torch.stack(base).mean().item()
    return out


def _item_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    items: Sequence[Item],
    style: Style,
    projection: Decoder,
) -> tuple[Tensor, dict[str, Tensor]]:
    """For each item [R]: whether greedy decoding gives the right response, and its probability by decoder."""
    exchanges = [encode_exchange(tokenizer, world, item.held_out, item.answer, style) for item in items]
    scored = score(model, exchanges, range(len(items))).projected(projection)
    wrong = scored.per_response((scored.logits.argmax(-1) != scored.gold).double())
    tokens = {name: token_log_probabilities(scored, decoder) for name, decoder in DECODERS.items()}
    return wrong == 0, {name: scored.per_response(values).exp() for name, values in tokens.items()}


def _item_measures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, style: Style, projection: Decoder
) -> dict[str, float]:
    """Accuracy on the held-out closed items, pass@1 and pass@32 on the held-out makers."""
    items = held_out_items(world)
    right, probabilities = _item_scores(model, tokenizer, world, items, style, projection)
    out: dict[str, float] = {}
    for task in (*CLOSED_TASKS, "maker"):
        chosen = torch.tensor([item.task == task for item in items])
        out[f"accuracy/{task}"] = right[chosen].double().mean().item()
        if task == "maker":
            for name, p in probabilities.items():
                out[f"maker/pass_1_{name}"] = p[chosen].mean().item()
                out[f"maker/pass_{SAMPLES}_{name}"] = expected_distinct(p[chosen]).mean().item()
    out["accuracy"] = sum(out[f"accuracy/{task}"] for task in CLOSED_TASKS) / len(CLOSED_TASKS)
    return out


def evaluate_toyworld(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    style: Style = "chat",
    projection: str = "softmax",
) -> dict[str, float]:
    """All exact measures of a model in the toy world, on requests and items that fine-tuning does not use.

    Args:
        model: a causal language model of the world; its mode and its device stay as they are.
        tokenizer: its tokenizer, with the chat template it was trained with.
        world: world from `load_world`.
        style: "chat"; "text" for a base model that has never seen the chat tokens (see `encode_exchange`).
        projection: the distribution that the model is decoded with, one of `DECODINGS`. Everything is measured of it:
            temperature, top-k and top-p come behind it, so that of sparsemax the support stays at any temperature.

    Returns:
        With `seen/` and `unseen/` before them, means over the held-out requests of the open families, nan where the
        value of one of them is not defined (`format_...` and `end_probability` of a model that gives it no plausible
        answer):
        `validity_t1`, `distinct_t1`, `coverage_t1`, `format_t1`, the same with `_papers` (T 0.6, top-k 50, top-p 0.9)
        as in `response_measures`; `distinct_t1_k1` ... `distinct_papers_k3`, D of families with k taught answers
        (seen only); `outside_plausible`, `tail_mass`, `support_size`, `entropy` of the first answer token at
        temperature 1 (`shape_measures`); `end_probability` (chat only); `distinct_matched`, D at
        `temperature_matched`, the highest temperature at which V is still 0.95 (nan: none);
        `distinct_base`, D of the world's base distribution.
        `accuracy`, the greedy accuracy on held-out closed items, mean of `accuracy/plus`, `/capital`,
        `/opposite`, `/copy`; `accuracy/maker`, and the exact `maker/pass_1_t1`, `maker/pass_32_t1`, `..._papers`.

    Raises:
        UserError: the tokenizer is not the toy world's.
    """
    decoder = DECODINGS[projection]
    out: dict[str, float] = {}
    for split, families in (("seen", world.seen), ("unseen", world.unseen)):
        measures = _family_measures(model, tokenizer, world, families, style, decoder)
        out |= {f"{split}/{name}": value for name, value in measures.items()}
    return out | _item_measures(model, tokenizer, world, style, decoder)
