"""What a user sets of model, optimizer and schedule, checked when it is set."""

from dataclasses import dataclass, field
from typing import Literal

from ts2_lightning.ranges import (
    COUNT,
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    NULL,
    POSITIVE,
    SHARE,
    Range,
    check_number,
    check_numbers,
)
from ts2_lightning.types import UserError

_BELOW_ONE = Range(least=0, below=1)
_ROWS = Range(least=1, most=2**24, whole=True, hint="true takes as many as the tokenizer has tokens")
_RANK = Range(least=1, most=2**16, whole=True)  # no model is wider
_RATE = Range(above=0, most=10)
"""AdamW moves a weight by about the rate in a step, and weights of language models are of the size of 0.02: sane rates
are below 0.01. Only with an `eps` that dwarfs the gradients, which makes it plain descent at lr / eps, are they larger.
"""


@dataclass
class AdapterConfig:
    """A LoRA adapter: W + alpha / r B A in place of a matrix W, where B and A are small and alone are trained.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685.

    Args:
        r: rank of the product, at least 1.
        alpha: the product's factor is alpha / r.
        dropout: share of a layer's inputs that its adapter does not see, in [0, 1).
        target_modules: `all-linear` adapts every linear layer but the output head; a list names layers, or the last
            parts of their names.
        head: adapt the output head too.
        target_parameters: weights in no linear layer to adapt too, as transformers 5 holds the experts of a mixture,
            all of a layer in one: `all-experts`, or a list of the last parts of their names (`experts.down_proj`). Each
            expert has a product of rank `r` of its own; dropout has to be 0.
        path: an adapter in PEFT's format to start from (a directory, or a name on the hub), which has the same `r`,
            `alpha` and targets. Default: a new one, which changes nothing at first.
    """

    r: int = 16
    alpha: int = 16
    dropout: float = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    head: bool = False
    target_parameters: Literal["all-experts"] | list[str] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        check_numbers("model.lm.adapter.", self, r=_RANK, alpha=COUNT, dropout=_BELOW_ONE)
        if self.target_parameters == []:
            raise UserError(
                "model.lm.adapter: target_parameters must be null, all-experts or a list of names, got an empty list"
            )
        if self.target_parameters and self.dropout:
            raise UserError(
                f"model.lm.adapter: dropout must be 0 with target_parameters, got {self.dropout}: inputs of experts "
                "cannot be dropped for their adapter alone"
            )
        if not self.target_modules:
            raise UserError("model.lm.adapter: target_modules must be all-linear or a list of names, got an empty list")


@dataclass
class LanguageModelConfig:
    """Which causal language model is trained, and how it is held.

    Args:
        path: a directory with a Hugging Face model, or its name on the hub; `toyworld` (or `toyworld?seed=1`)
            is the embedded base model, made on first use.
        revision: branch, tag or commit on the hub.
        init: `pretrained` loads the weights; `random` draws them from the model's config.
        dtype: Type of the weights that the optimizer updates. A step of 2e-5 leaves a bfloat16 weight of 0.02
            as it is, so keep float32 and set the trainer's precision to bf16-mixed for the compute. Below an adapter,
            which is float32 in any case, nothing is updated, and bfloat16 takes half the memory.
        attn_implementation: `auto` takes flash_attention_2 where it is installed and a GPU is there, else sdpa
            (eager for an architecture that has none).
        deterministic_attention: ask flash attention for its deterministic backward pass, as the papers do.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        adapter: train a LoRA adapter and leave the model's own weights as they are.
        quantization: `nf4` holds the linear layers, but the head, in 4 bits (with doubly quantised scales, and bfloat16
            products), below an adapter. Source: Dettmers et al. 2023, "QLoRA", https://arxiv.org/abs/2305.14314.
        resize_embeddings: give the model rows for tokens that it has none for, at the mean of its own: `true` as many
            as `data.tokenizer` has tokens, a number so many; fewer never. Not below an adapter, which trains none.
        router_aux_loss_coef: factor of the load-balancing loss of a mixture of experts, which is added to the
            objective (`train/router_loss` is the loss itself, see `modules.router`); 0 leaves it out. Default: as in
            transformers, the factor in the model's config.json if `output_router_logits` is true there, else 0.
    """

    path: str
    revision: str | None = None
    init: Literal["pretrained", "random"] = "pretrained"
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attn_implementation: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    deterministic_attention: bool = False
    gradient_checkpointing: bool = False
    adapter: AdapterConfig | None = None
    quantization: Literal["nf4"] | None = None
    resize_embeddings: bool | int | None = None
    router_aux_loss_coef: float | None = None
    written_path: str | None = field(default=None, init=False)
    """The path as the user wrote it, where another has been put in its place: that of the embedded base model."""

    def __post_init__(self) -> None:
        check_numbers("model.lm.", self, router_aux_loss_coef=(NOT_NEGATIVE, NULL))
        if not isinstance(self.resize_embeddings, bool):
            check_number("model.lm.resize_embeddings", self.resize_embeddings, _ROWS, NULL)
        if self.resize_embeddings and self.adapter:
            raise UserError(
                "model.lm.resize_embeddings: an adapter leaves embeddings as they are, so that new tokens would all "
                "stay the mean of the others; train the whole model, or take a tokenizer whose tokens it has"
            )
        if self.quantization and self.adapter is None:
            raise UserError("model.lm.quantization: 4-bit weights cannot be trained; set model.lm.adapter too")
        if self.quantization and self.init == "random":
            raise UserError("model.lm.quantization: nf4 is of a checkpoint's weights; set model.lm.init to pretrained")
        if self.adapter and self.init == "random":
            raise UserError(
                "model.lm.adapter: random weights below an adapter are kept nowhere, as checkpoints hold the adapter "
                "alone; set model.lm.init to pretrained"
            )


@dataclass
class AdamWConfig:
    """AdamW as the papers set it.

    Args:
        lr: peak learning rate, above 0 and at most 10.
        betas: decay of the first and second moment, each from 0 and below 1; GEM and the public code of TS2 use 0.95
            for the second.
        eps: added to the root of the second moment; above 0, or a weight without gradient would become NaN.
        weight_decay: on matrices only, never on norms and biases; at most 1 / lr.
        fused: torch's fused implementation.
    """

    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    fused: bool = True

    def __post_init__(self) -> None:
        check_numbers("model.optimizer.", self, lr=_RATE, eps=POSITIVE)
        for place, beta in enumerate(self.betas):
            check_number(f"model.optimizer.betas[{place}]", beta, _BELOW_ONE)
        most = (1 + 1e-9) / self.lr  # 1 / 2e-5 is a hair below 50,000
        decay = Range(least=0, most=most, hint="a step takes lr times as much off each weight")
        check_number("model.optimizer.weight_decay", self.weight_decay, decay)


@dataclass
class ScheduleConfig:
    """The learning rate over the run.

    Args:
        name: `cosine` or `linear` decay to `min_lr_ratio`, or `constant`; all after a linear warm-up of w steps, whose
            first has the peak's w-th part as its learning rate, and whose last the peak.
        warmup_ratio: share of all optimizer steps spent warming up, in [0, 1).
        warmup_steps: the same in steps; overrides the ratio.
        min_lr_ratio: the final learning rate over the peak, in [0, 1]. Only cosine decays to more than 0.
    """

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    warmup_steps: int | None = None
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(
            "model.schedule.",
            self,
            warmup_ratio=_BELOW_ONE,
            warmup_steps=(COUNT_OR_ZERO, NULL),
            min_lr_ratio=SHARE,
        )
        if self.min_lr_ratio > 0 and self.name != "cosine":
            raise UserError(f"model.schedule.min_lr_ratio needs name: cosine, got {self.name}")
