"""Weights, gradients and optimizer state of each GPU: a class for each way to divide them.

Exact, in bytes of tensors, for AdamW: tests build the real thing and count. So are checkpoints, but for a few kB for
the name and shape of each tensor and share. What a strategy holds to communicate (`gathered`) is an upper bound.
Notation of ZeRO (Rajbhandari et al. 2020, section 3): N parameters, n GPUs; AdamW over float32 takes 4 N for weights,
4 N for gradients and 8 N for moments.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ts2_lightning.planning.layout import Layout
from ts2_lightning.planning.model import Weight

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits: its byte-sized scale is shared by 64, and that one's float32 scale by 256 such groups.

Source: Dettmers et al. (2023), QLoRA, section 3, double quantisation.
"""

_MASTER = 4  # bytes of an element of DeepSpeed's master weights
_STEP = 4  # AdamW counts its steps in a float32 for every tensor


def held_bytes(weight: Weight) -> int:
    """Bytes of a whole weight."""
    return math.ceil(weight.elements * (NF4 if weight.quantized else weight.itemsize))


@dataclass(frozen=True)
class State(ABC):
    """What a GPU holds all the time, and what it gathers for a while.

    Args:
        weights: the model's, in its order.
        layout: how they are divided.
        accumulation: micro-batches of a step.
        rank: Rank of the GPU among those that hold different rows, of one copy; the first holds the most.
    """

    weights: Sequence[Weight]
    layout: Layout
    accumulation: int = 1
    rank: int = 0

    @property
    def trained(self) -> list[Weight]:
        """Those that get a gradient, as AdamW gets them: matrices, then vectors."""
        trained = [w for w in self.weights if w.trained]
        return [w for w in trained if len(w.shape) >= 2] + [w for w in trained if len(w.shape) < 2]

    @abstractmethod
    def held_weights(self) -> int:
        """Bytes of the weights, as the network has them."""

    @abstractmethod
    def held_gradients(self) -> int:
        """Bytes of the sums of a step's gradients."""

    @abstractmethod
    def held_optimizer(self) -> int:
        """Bytes of AdamW's two moments, and of its own copy of the weights where there is one."""

    @abstractmethod
    def gathered(self) -> int:
        """Bytes of buffers for communication and of weights and gradients gathered for a while, at most."""

    @abstractmethod
    def checkpoint(self) -> int:
        """Bytes of a checkpoint, over all GPUs: of what is trained, as the base model's own files have the rest."""

    @abstractmethod
    def copied(self) -> int:
        """Bytes of a checkpoint that the first GPU's process saves, and copies where it is written asynchronously."""

    def at_the_update(self) -> int:
        """Bytes that the update needs beside the state, when the activations are gone."""
        return 0

    def on_host(self) -> int:
        """Bytes in the memory of the host, for this GPU."""
        return 0


class Whole(State):
    """One GPU, or DDP: every GPU holds everything: 4 N + 4 N + 8 N."""

    def held_weights(self) -> int:
        """4 N."""
        return sum(held_bytes(w) for w in self.weights)

    def held_gradients(self) -> int:
        """4 N of what is trained."""
        return sum(held_bytes(w) for w in self.trained)

    def held_optimizer(self) -> int:
        """8 N of what is trained."""
        return sum(2 * held_bytes(w) + _STEP for w in self.trained)

    def checkpoint(self) -> int:
        """4 N and 8 N, by the first GPU."""
        return sum(held_bytes(w) for w in self.trained) + self.held_optimizer()

    def copied(self) -> int:
        """All of it."""
        return self.checkpoint()

    def gathered(self) -> int:
        """DDP's buckets, as large as the gradients unless those are views of them."""
        copies = self.layout.kind == "ddp" and not self.layout.bucket_views
        return self.held_gradients() if copies else 0


class Layers(State):
    """FSDP2: each layer divided over n GPUs by its parameters' first dimension, gathered to be computed.

    These are all GPUs, or those of one copy: copies hold the same, and a checkpoint has one of them.

    FSDP1 divides the layer's flat parameters instead, which takes the same up to rounding.
    """

    def held_weights(self) -> int:
        """4 N / n, with the first dimension rounded up for all."""
        return sum(self._share(w, padded=True) for w in self.weights)

    def held_gradients(self) -> int:
        """4 N / n of what is trained."""
        return sum(self._share(w, padded=True) for w in self.trained)

    def held_optimizer(self) -> int:
        """8 N / n of what is trained; here the last GPUs have less."""
        return sum(2 * self._share(w) + _STEP for w in self.trained)

    def checkpoint(self) -> int:
        """4 N and 8 N, each GPU its share; the weights under each of their names, and under FSDP1 frozen ones too."""
        saved = self.weights if self.layout.kind == "fsdp" else self.trained
        return sum(w.names * self._undivided(w) for w in saved) + sum(
            2 * self._undivided(w) + _STEP for w in self.trained
        )

    def copied(self) -> int:
        """12 N / n; a tied head's matrix once, unlike on the disk."""
        state = sum(3 * self._undivided(w) + _STEP for w in self.trained)
        return math.ceil(state / (self.layout.shards * self.layout.tensor_parallel))

    def gathered(self) -> int:
        """What is outside the layers, from its first use to the end of the step, and three layers.

        While a layer is computed the next one is gathered, and split from a buffer into its parameters. In
        the backward pass as many gradients wait to be reduced, and the head's, which is outside, from the beginning.
        """
        layer = max(map(_gathered_bytes, _layers(self.weights)), default=0)
        trained = max(map(_gathered_bytes, _layers(self.trained)), default=0)
        outside = [w for w in self.weights if w.layer < 0]
        waiting = _gathered_bytes([w for w in outside if w.trained])
        return _gathered_bytes(outside) + max(3 * (layer + trained) + waiting, 2 * waiting)

    def _share(self, weight: Weight, padded: bool = False) -> int:
        n, rows = self.layout.shards, weight.shape[0]
        most = math.ceil(rows / n)
        own = most if padded else min(most, max(0, rows - most * self.rank))
        return own * (weight.elements // rows) * weight.itemsize

    def _undivided(self, weight: Weight) -> int:
        """Bytes over all GPUs; those that compute the same rows have a part of each matrix."""
        return held_bytes(weight) * (self.layout.tensor_parallel if weight.linear else 1)


class ZeroOptimizer(State):
    """DeepSpeed, stage 1 and 2: whole weights; master weights and moments divided, as one flat tensor per group.

    A group's length is rounded up to a multiple of 2 n. Stage 2 divides the gradients too, but keeps every parameter
    whole of which it owns a part.
    """

    def held_weights(self) -> int:
        """4 N."""
        frozen = sum(held_bytes(w) for w in self.weights if not w.trained)
        return frozen + sum(self._padded(group) * group[0].itemsize for group in self._groups())

    def held_gradients(self) -> int:
        """4 N (stage 1), or 4 N / n and what sticks out (stage 2)."""
        if self.layout.offload_optimizer:
            return 0
        if self.layout.stage == 1:
            return sum(held_bytes(w) for w in self.trained)
        return self._owned()

    def held_optimizer(self) -> int:
        """12 N / n: masters, which float32 weights get too, and moments."""
        return 0 if self.layout.offload_optimizer else self._optimizer()

    def checkpoint(self) -> int:
        """12 N, each GPU its share of masters and moments, and the 4 N of the weights themselves, by the first one."""
        return sum(held_bytes(w) for w in self.trained) + self.layout.data_parallel * self._optimizer()

    def copied(self) -> int:
        """12 N / n, and the 4 N."""
        return sum(held_bytes(w) for w in self.trained) + self._optimizer()

    def gathered(self) -> int:
        """Two buckets, which do not shrink with the model, and the gradients of a later micro-batch."""
        itemsize = self.trained[0].itemsize
        again = self.held_gradients() if self.layout.stage == 2 and self.accumulation > 1 else 0
        largest = max(w.elements for w in self.trained) * itemsize if self.layout.offload_optimizer else 0
        return 2 * self.layout.bucket * itemsize + again + largest

    def at_the_update(self) -> int:
        """4 N / n: a flat copy of the gradients."""
        return 0 if self.layout.offload_optimizer else sum(map(self._partition, self._groups())) * _MASTER

    def on_host(self) -> int:
        """12 N / n, a gradient of 4 N / n, and a copy of the weights of the partition on their way back."""
        if not self.layout.offload_optimizer:
            return 0
        elements = sum(map(self._partition, self._groups()))
        return self._optimizer() + elements * (_MASTER + self.trained[0].itemsize)

    def _optimizer(self) -> int:
        return sum(3 * self._partition(group) * _MASTER + _STEP for group in self._groups())

    def _groups(self) -> list[list[Weight]]:
        matrices = [w for w in self.trained if len(w.shape) >= 2]
        vectors = [w for w in self.trained if len(w.shape) < 2]
        return [group for group in (matrices, vectors) if group]

    def _padded(self, group: list[Weight]) -> int:
        return 2 * self.layout.data_parallel * self._unit(group)

    def _partition(self, group: list[Weight]) -> int:
        return 2 * self._unit(group)

    def _unit(self, group: list[Weight]) -> int:
        return math.ceil(sum(w.elements for w in group) / (2 * self.layout.data_parallel))

    def _owned(self) -> int:
        """Bytes of the parameters of which this GPU's partitions hold a part, and of padding."""
        total = 0
        for group in self._groups():
            size = self._partition(group)
            first, end = self.rank * size, (self.rank + 1) * size
            start = 0
            for w in group:
                total += held_bytes(w) if start < end and start + w.elements > first else 0
                start += w.elements
            total += max(0, end - max(first, start)) * group[0].itemsize  # zeros, in the last partition
        return total


class ZeroWeights(State):
    """DeepSpeed, stage 3: every parameter divided as a flat tensor, gathered to be computed.

    Parameters below 100,000 elements stay gathered as well. Float32 weights get masters too: DeepSpeed means to do
    without, but compares a device with its name, which never are equal.
    """

    threshold = 100_000
    live, prefetched = 1_000_000_000, 50_000_000  # elements: DeepSpeed's defaults

    def held_weights(self) -> int:
        """4 N / n, and the small ones whole."""
        if self.layout.offload_parameters:
            return self._small()
        return self._divided(self.weights) + self._small()

    def held_gradients(self) -> int:
        """4 N / n."""
        return 0 if self.layout.offload_optimizer else self._elements(self.trained) * self.trained[0].itemsize

    def held_optimizer(self) -> int:
        """12 N / n."""
        return 0 if self.layout.offload_optimizer else self._optimizer()

    def checkpoint(self) -> int:
        """12 N: masters and moments, each GPU its share."""
        return self.layout.data_parallel * self._optimizer()

    def copied(self) -> int:
        """12 N / n."""
        return self._optimizer()

    def gathered(self) -> int:
        """A bucket, and weights that are kept gathered because they are soon used again, or prefetched."""
        itemsize = self.trained[0].itemsize
        whole = sum(w.elements for w in self.weights)
        largest = max(w.elements for w in self.weights)
        kept = min(whole, max(self.live, largest) + self.prefetched)
        return (self.layout.bucket + kept) * itemsize + largest * itemsize

    def at_the_update(self) -> int:
        """4 N / n: a flat copy of the gradients."""
        return 0 if self.layout.offload_optimizer else self._elements(self.trained) * _MASTER

    def on_host(self) -> int:
        """What is offloaded: the optimizer with a gradient, the weights."""
        optimizer = self._optimizer() + self._elements(self.trained) * _MASTER if self.layout.offload_optimizer else 0
        return optimizer + (self._divided(self.weights) if self.layout.offload_parameters else 0)

    def _optimizer(self) -> int:
        return 3 * self._elements(self.trained) * _MASTER + _STEP * self._groups()

    def _groups(self) -> int:
        return len({len(w.shape) >= 2 for w in self.trained})

    def _elements(self, weights: Iterable[Weight]) -> int:
        return sum(math.ceil(w.elements / self.layout.data_parallel) for w in weights)

    def _divided(self, weights: Iterable[Weight]) -> int:
        return sum(math.ceil(w.elements / self.layout.data_parallel) * w.itemsize for w in weights)

    def _small(self) -> int:
        return sum(held_bytes(w) for w in self.weights if w.elements < self.threshold)


def state_of(weights: Sequence[Weight], layout: Layout, accumulation: int = 1, rank: int = 0) -> State:
    """The state of a training on one GPU, by the class that the layout's strategy needs.

    Args:
        weights: weights of the whole model.
        layout: division of the state over GPUs.
        accumulation: micro-batches of an optimizer step.
        rank: rank of the GPU among those that hold different rows, of one copy; the first holds the most.
    """
    if layout.kind in ("single", "ddp"):
        return Whole(weights, layout, accumulation, rank)
    if layout.kind in ("fsdp", "fsdp2"):
        return Layers(weights, layout, accumulation, rank)
    kind = ZeroWeights if layout.stage == 3 else ZeroOptimizer
    return kind(weights, layout, accumulation, rank)


def frozen_copy(weights: Iterable[Weight], beside: Iterable[Weight]) -> list[Weight]:
    """The weights of a frozen model, in decoder layers of their own beside those of a model that is trained."""
    layers = 1 + max((w.layer for w in beside), default=-1)
    return [w._replace(trained=False, layer=w.layer + layers if w.layer >= 0 else w.layer) for w in weights]


def _layers(weights: Iterable[Weight]) -> list[list[Weight]]:
    layers: dict[int, list[Weight]] = {}
    for w in weights:
        if w.layer >= 0:
            layers.setdefault(w.layer, []).append(w)
    return list(layers.values())


def _gathered_bytes(weights: Iterable[Weight]) -> int:
    return sum(w.elements * w.gathered for w in weights)
