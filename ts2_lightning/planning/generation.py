"""What it takes to make responses: memory of weights and cache, and hours, as a roofline has them.

    seconds = prompt tokens x operations / flops + steps x max(bytes / bandwidth, operations / flops, launching)

A prompt is read at the speed of the GPU's products. A step of decoding reads all weights once, and the cache of every
response that is decoded; so many are decoded together as the memory holds. Flops and bandwidth are a share of the
GPU's peaks. Every response is taken to have all the tokens that it may have.

Source: Williams et al. (2009), Roofline; Pope et al. (2022), Efficiently scaling transformer inference, section 3.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from ts2_lightning.hardware import GPU
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.planning.caches import CacheLayer
from ts2_lightning.planning.duration import COLLECTIVES, EFFICIENCY, forward_operations
from ts2_lightning.planning.estimate import CONTEXT, GAPS
from ts2_lightning.planning.model import Sizes, measure_decoding
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, NULL, POSITIVE, Range, check_number, check_numbers

_MOST_GPUS = 64


@dataclass(frozen=True)
class Wanted:
    """Responses that are still to be made.

    Attributes:
        responses: number of them.
        prompts: number of different prompts; each is read once for all its responses.
        prompt_tokens: tokens of these prompts together.
        new_tokens: tokens of the responses together, at most.
        longest: tokens of the longest prompt with its response, at most.

    Raises:
        UserError: a number out of its range.
    """

    responses: int
    prompts: int
    prompt_tokens: int
    new_tokens: int
    longest: int

    def __post_init__(self) -> None:
        names = ("responses", "prompts", "prompt_tokens", "new_tokens", "longest")
        check_numbers("Wanted: ", self, **dict.fromkeys(names, COUNT_OR_ZERO))

    @classmethod
    def of(cls, asked: Iterable[tuple[int, int, int]]) -> "Wanted":
        """From what is wanted of each prompt.

        Args:
            asked: for each different prompt its tokens, the number of responses, and the tokens of each at most.

        Example:
            >>> Wanted.of([(10, 2, 100), (30, 1, 80)])
            Wanted(responses=3, prompts=2, prompt_tokens=40, new_tokens=280, longest=110)
        """
        each = [one for one in asked if one[1]]
        return cls(
            responses=sum(count for _, count, _ in each),
            prompts=len(each),
            prompt_tokens=sum(length for length, _, _ in each),
            new_tokens=sum(count * limit for _, count, limit in each),
            longest=max((length + limit for length, _, limit in each), default=0),
        )


@dataclass(frozen=True)
class Sampler:
    """What makes the responses.

    Attributes:
        at_once: number of responses that are decoded together, at most.
        memory: share of the GPU's memory that it takes.
        launching: seconds that a layer takes in a step at least, until all its kernels are launched.
        splits: whether a model may lie on several GPUs.
        gpus: number of GPUs that the model lies on; None takes as few as hold it.

    Raises:
        UserError: a number out of its range.
    """

    at_once: int
    memory: float = 1.0
    launching: float = 0.0
    splits: bool = False
    gpus: int | None = None

    def __post_init__(self) -> None:
        share = Range(above=0, most=1)
        check_numbers("Sampler: ", self, at_once=COUNT, memory=share, launching=NOT_NEGATIVE, gpus=(COUNT, NULL))


TRANSFORMERS = Sampler(at_once=64, launching=0.7e-3)
"""The transformers backend: Python launches every kernel. The time of a layer is a guess, from models of 7 to 8 billion
parameters that take 20 to 30 ms a step however small the batch is."""

VLLM = Sampler(at_once=256, memory=0.9, splits=True)
"""vLLM with its own defaults."""


@dataclass(frozen=True)
class Decoding:
    """What a model takes while it generates.

    Attributes:
        sizes: Sizes of the model.
        cache: what each layer keeps of a sequence.
        dtype: dtype of weights and cache.
    """

    sizes: Sizes
    cache: tuple[CacheLayer, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, path: str, dtype: torch.dtype) -> "Decoding":
        """From the config.json of a model.

        Args:
            path: a transformers directory, or a name on the hub.
            dtype: dtype of weights and cache.

        Raises:
            UserError: no config.json there, or a model whose cache cannot be counted.
        """
        return cls(*measure_decoding(LanguageModelConfig(path), dtype), dtype)

    @property
    def weights(self) -> int:
        """Bytes of all weights and buffers."""
        return sum(w.elements * w.itemsize for w in self.sizes.weights) + self.sizes.buffers

    def cache_bytes(self, tokens: float) -> int:
        """Bytes of the cache of a sequence of so many tokens."""
        return sum(layer.bytes(tokens) for layer in self.cache)

    def read_bytes(self, at_once: float) -> float:
        """Bytes of the weights that a step reads: of the experts of a mixture those that one of its tokens goes to."""
        layers = sum(
            w.elements * w.itemsize * (1 - (1 - w.used) ** at_once) for w in self.sizes.weights if w.layer >= 0
        )
        return layers + self.sizes.head.vocabulary * self.sizes.head.width * self.dtype.itemsize

    def operations(self, context: float) -> float:
        """Operations for a token that looks at so many, without the head."""
        columns = sum(layer.columns(context) for layer in self.cache)
        return forward_operations(self.sizes) + 4.0 * self.sizes.heads_width * columns

    @property
    def head_operations(self) -> float:
        """Operations of the head for a token."""
        return 2.0 * self.sizes.head.vocabulary * self.sizes.head.width


@dataclass(frozen=True)
class GenerationCost:
    """What making responses takes, at most. An estimate, but for what is counted.

    Attributes:
        wanted: responses and tokens, counted.
        gpu: kind of GPU; None where a server computes, of which nothing but the tokens is known.
        gpus: number of GPUs that hold one copy of the model.
        weights: bytes of the weights, over all GPUs of a copy; exact.
        cache: bytes of the cache of the longest response; exact for transformers' own cache.
        at_once: number of responses that a copy decodes together; 0 where it holds none.
        fits: whether it can be made as it is set.
        seconds: seconds that one copy takes, from the roofline, or at the rate that was measured.
        efficiency: share of the GPU's peaks.
        rate: tokens a second of one copy, measured before; None where they follow from the roofline.

    Example:
        >>> GenerationCost(Wanted(8, 2, 100, 4096, 562)).gpu_hours is None
        True
    """

    wanted: Wanted
    gpu: GPU | None = None
    gpus: int = 0
    weights: int = 0
    cache: int = 0
    at_once: int = 0
    fits: bool = True
    seconds: float | None = None
    efficiency: float = EFFICIENCY
    rate: float | None = None

    @property
    def gpu_hours(self) -> float | None:
        """Hours of GPUs; None where they are not known."""
        return None if self.seconds is None else self.seconds * self.gpus / 3600

    def wall_hours(self, gpus: int) -> float | None:
        """Hours on so many GPUs in all, each copy of the model making a share of the responses."""
        if self.seconds is None:
            return None
        return self.seconds / 3600 / max(1, gpus // self.gpus)


def generation_cost(
    wanted: Wanted,
    decoding: Decoding,
    gpu: GPU,
    sampler: Sampler,
    rate: float | None = None,
    efficiency: float = EFFICIENCY,
) -> GenerationCost:
    """The cost of making responses with a model.

    Args:
        wanted: what is to be made.
        decoding: what the model takes.
        gpu: Kind of GPU.
        sampler: what makes them.
        rate: tokens a second of one copy of the model, if they were measured on this kind of GPU.
        efficiency: share of the GPU's peak flops and bandwidth that is reached.

    Raises:
        UserError: a number out of its range.
    """
    check_number("generation_cost: efficiency", efficiency, Range(above=0, most=1))
    if rate is not None:
        check_number("generation_cost: rate", rate, POSITIVE)
    gpus = sampler.gpus or _gpus_needed(wanted, decoding, gpu, sampler)
    fitting = _at_once(wanted, decoding, gpu, sampler, gpus)
    at_once = min(fitting, sampler.at_once, wanted.responses)
    cost = GenerationCost(
        wanted, gpu, gpus, decoding.weights, decoding.cache_bytes(wanted.longest), at_once,
        fits=(fitting > 0 or not wanted.responses) and (gpus == 1 or sampler.splits), efficiency=efficiency, rate=rate,
    )  # fmt: skip
    if not wanted.responses:
        return replace(cost, seconds=0.0)
    if rate is not None:
        return replace(cost, seconds=wanted.new_tokens / rate)
    if not at_once:
        return cost
    reading = _prefill_seconds(wanted, decoding, gpu, gpus, efficiency)
    steps = wanted.new_tokens / at_once
    return replace(cost, seconds=reading + steps * _step_seconds(wanted, decoding, gpu, sampler, cost))


def _gpus_needed(wanted: Wanted, decoding: Decoding, gpu: GPU, sampler: Sampler) -> int:
    """The smallest power of two that holds the weights and the longest response; the largest one that is tried."""
    gpus = 1
    while gpus < _MOST_GPUS and not _at_once(wanted, decoding, gpu, sampler, gpus):
        gpus *= 2
    return gpus


def _at_once(wanted: Wanted, decoding: Decoding, gpu: GPU, sampler: Sampler, gpus: int) -> int:
    """Number of responses whose caches lie beside the weights, each as long as the longest."""
    room = gpus * (gpu.memory * sampler.memory - CONTEXT) / (1 + GAPS) - decoding.weights
    each = decoding.cache_bytes(max(1, wanted.longest))
    return max(0, int(room // each)) if each else sampler.at_once


def _prefill_seconds(wanted: Wanted, decoding: Decoding, gpu: GPU, gpus: int, efficiency: float) -> float:
    """Every prompt is read once; its tokens look at half of it on the average, and the last one needs the head."""
    mean = wanted.prompt_tokens / wanted.prompts
    done = wanted.prompt_tokens * decoding.operations(mean / 2) + wanted.prompts * decoding.head_operations
    return done / (gpus * gpu.flops * efficiency)


def _step_seconds(wanted: Wanted, decoding: Decoding, gpu: GPU, sampler: Sampler, cost: GenerationCost) -> float:
    """One token of each response: what is read, what is computed, or what is launched, whichever takes longest."""
    length = wanted.prompt_tokens / wanted.prompts + wanted.new_tokens / wanted.responses / 2
    read = decoding.read_bytes(cost.at_once) + cost.at_once * decoding.cache_bytes(length)
    done = cost.at_once * (decoding.operations(length) + decoding.head_operations)
    share = cost.gpus * cost.efficiency
    layers = decoding.sizes.layers
    sent = 0.0
    if cost.gpus > 1:  # tensor parallelism sums the activations twice in each layer
        activations = cost.at_once * decoding.sizes.head.width * decoding.dtype.itemsize
        sent = 2 * layers * activations * 2 * (cost.gpus - 1) / cost.gpus / (COLLECTIVES * gpu.link)
    return sent + max(read / (gpu.bandwidth * share), done / (gpu.flops * share), layers * sampler.launching)
