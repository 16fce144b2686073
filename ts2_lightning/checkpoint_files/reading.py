"""Lightning's checkpoints of every strategy, read one tensor at a time, in one process and without DeepSpeed.

A checkpoint is a pickle, and may come from elsewhere. Nothing in it is run: of a `torch.save` file every class that
torch does not know to be harmless becomes an inert stand-in, and of the metadata of torch.distributed.checkpoint only
that package's own records are made.

Lightning, torch.distributed.checkpoint and DeepSpeed read with less care when a run goes on: `check_plain_values` and
`load_plain_values` are for those who call them.
"""

import io
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ts2_lightning.checkpoint_files.disk import is_complete, is_deepspeed, is_distributed
from ts2_lightning.types import UserError

EMA = "ema_state_dict"
"""Entry of a checkpoint with moving averages of the weights; in the directory of FSDP2, before their names."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checkpoint that is not read yet.

    Attributes:
        shape: shape of the whole tensor, wherever its parts lie.
        dtype: dtype of the tensor.
        read: function that returns the whole tensor on the CPU. It may be memory-mapped: do not change it.
    """

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "StoredTensor":
        """A stored tensor that is in memory, or mapped into it, already."""
        return cls(tensor.shape, tensor.dtype, lambda: tensor.detach())


class Checkpoint(NamedTuple):
    """The contents of a checkpoint that concern the model.

    Attributes:
        weights: weights under their names in the LightningModule; float32 masters where there are any. They stay on the
            disk until they are read.
        step: number of optimizer steps done.
        entries: names of all entries of the checkpoint.
        ema: moving averages of the weights, under the same names; empty where the training made none.
    """

    weights: dict[str, StoredTensor]
    step: int
    entries: frozenset[str] = frozenset()
    ema: Mapping[str, StoredTensor] = MappingProxyType({})

    @property
    def is_of_lightning(self) -> bool:
        """Whether Lightning wrote it, and so reads it."""
        return {"pytorch-lightning_version", "loops"} <= self.entries

    @property
    def can_go_on(self) -> bool:
        """Whether training can go on from it: it has optimizer, schedule and loops, not the weights alone."""
        return self.is_of_lightning and "lr_schedulers" in self.entries


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint: a file, or the directory of FSDP2 (or FSDP1, never run) or of DeepSpeed ZeRO-1, 2 or 3.

    Raises:
        UserError: if it is none of these, or parts of it are missing.
    """
    if not is_complete(path):
        raise UserError(f"{path}: no checkpoint, or not a complete one (was it cut short while it was written?)")
    try:
        if is_distributed(path):
            return _distributed(path)
        return _deepspeed(path) if is_deepspeed(path) else _single_file(path)
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, OSError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path}: this is no checkpoint of a fit, or it is damaged ({reason})") from error


def weights_of(checkpoint: Checkpoint, names: Sequence[str], path: Path) -> dict[str, StoredTensor]:
    """The weights of one part of the LightningModule, under that part's own names.

    Args:
        checkpoint: checkpoint from `read_checkpoint`.
        names: names of the part's weights, of which the checkpoint has at least the first.
        path: path of the checkpoint, for the message.

    Raises:
        UserError: if the checkpoint does not have it.
    """
    first = f".{names[0]}"
    prefix = next((name.removesuffix(first) for name in checkpoint.weights if name.endswith(first)), None)
    if prefix is None:
        raise UserError(f"{path} is a checkpoint of another model: it has no {names[0]}")
    inside = f"{prefix}."
    return {name.removeprefix(inside): weight for name, weight in checkpoint.weights.items() if name.startswith(inside)}


# One file -------------------------------------------------------------------------------------------------------


def _single_file(path: Path) -> Checkpoint:
    state = _load(path)
    weights, ema = (_stored(state, entry, absent) for entry, absent in (("state_dict", None), (EMA, {})))
    if weights is None or ema is None:
        raise UserError(f"{path}: this is no checkpoint of a fit, it holds {_contents(state)}")
    return Checkpoint(weights, *_progress(state), ema)


def _stored(state: Any, entry: str, absent: Any) -> dict[str, StoredTensor] | None:
    """The tensors of an entry of a checkpoint; None if it has something else there."""
    tensors = state.get(entry, absent) if isinstance(state, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        return None
    return {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}


def _contents(content: Any) -> str:
    """The contents of a file that is no checkpoint, in a few words."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return f"tensors alone ({len(content)} of them, as a state dict has them)"
    return f"a dict with {', '.join(map(str, [*content][:4])) or 'nothing in it'}"


def _progress(state: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """Optimizer steps done, and the names of what a checkpoint holds."""
    return int(state["global_step"]), frozenset(map(str, state))


class _Inert:
    """Stands for an object of a class that is not needed, and must not be trusted."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _load(path: Path) -> Any:
    """The contents of a file of `torch.save`, with memory-mapped tensors."""
    foreign = get_unsafe_globals_in_checkpoint(str(path))
    try:
        with safe_globals([(_Inert, name) for name in foreign]):
            state = torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message says how to load it all the same
        raise _not_plain(path, error) from error
    return state


# Checks for other readers ------------------------------------------------------------------------------------------


def load_plain_values(path: str | Path, map_location: Any = None) -> Any:
    """The contents of a file of `torch.save`, if these are tensors, plain values and DeepSpeed's few records.

    Raises:
        UserError: if it holds anything else, which might run code.
    """
    try:
        with safe_globals(_deepspeed_records()):
            return torch.load(str(path), map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _not_plain(Path(path), error) from error


def check_plain_values(checkpoint: Path) -> None:
    """Checks all that torch.distributed.checkpoint would unpickle of a directory, before it does.

    Raises:
        UserError: if there is more than tensors and plain values, which might run code.
    """
    try:
        reader = _DistributedReader(checkpoint)
        load_plain_values(checkpoint / "meta.pt", "meta")
        for index, part in reader.metadata.storage_data.items():
            if isinstance(reader.metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
                with (checkpoint / part.relative_path).open("rb") as file:
                    file.seek(part.offset)
                    torch.load(io.BytesIO(file.read(part.length)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise _not_plain(checkpoint, error) from error
    except (EOFError, LookupError, OSError, RuntimeError) as error:
        raise UserError(f"{checkpoint}: it is damaged ({type(error).__name__}: {error})") from error


def _not_plain(path: Path, error: Exception) -> UserError:
    name = re.search(r"GLOBAL (\S+)", str(error))
    class_name = f" ({name[1]})" if name else ""
    return UserError(f"{path}: it holds more than tensors and plain values{class_name}, and loading it might run code")


def _deepspeed_records() -> list[Any]:
    """The classes of which DeepSpeed saves instances: numbers and names, without code of their own."""
    if "deepspeed" not in sys.modules:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


# torch.distributed.checkpoint -----------------------------------------------------------------------------------


def _distributed(path: Path) -> Checkpoint:
    reader = _DistributedReader(path)
    weights = {}
    for key, about in reader.metadata.state_dict_metadata.items():
        module, _, name = key.partition(".")
        if module in ("state_dict", "model") and isinstance(about, TensorStorageMetadata):  # FSDP2's and FSDP1's
            weights[name] = StoredTensor(about.size, about.properties.dtype, reader.reading(key, about))
    ema = {name.removeprefix(f"{EMA}."): weights.pop(name) for name in [*weights] if name.startswith(f"{EMA}.")}
    return Checkpoint(weights, *_progress(_load(path / "meta.pt")), ema)


class _DistributedReader(FileSystemReader):
    """Reads the metadata once, and makes nothing but its own records of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with (path / ".metadata").open("rb") as file:
            self.metadata: Metadata = _RecordUnpickler(file).load()
        for part in self.metadata.storage_data.values():
            file_size = (path / part.relative_path).stat().st_size
            if file_size < part.offset + part.length:
                raise EOFError(f"{part.relative_path} ends early")

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata that the reader read when it was made."""
        return self.metadata

    def reading(self, key: str, about: TensorStorageMetadata) -> Callable[[], Tensor]:
        """A function that reads one whole tensor from its parts."""

        def read() -> Tensor:
            tensor = torch.empty(about.size, dtype=about.properties.dtype)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # on purpose
                try:
                    dcp.load({key: tensor}, storage_reader=self, no_dist=True)
                except dcp.CheckpointException as error:
                    raise UserError(f"{self.path}: {key} cannot be read, the checkpoint is damaged") from error
            return tensor

        return read


class _RecordUnpickler(pickle.Unpickler):
    _RECORDS = (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """The classes of a checkpoint's own record, and no others."""
        if module == "torch.distributed.checkpoint.metadata" and name in self._RECORDS:
            return super().find_class(module, name)
        if (module, name) in (
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
            ("torch", "Size"),
        ):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith("pathlib") and name.endswith("Path"):
            return PurePath
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a checkpoint's metadata")


# DeepSpeed ------------------------------------------------------------------------------------------------------


def _deepspeed(path: Path) -> Checkpoint:
    """ZeRO-1, 2 and 3, as `deepspeed.utils.zero_to_fp32` puts them together, but a tensor at a time."""
    directory = path / (path / "latest").read_text().strip()
    models = [_load(file) for file in _of_ranks(directory, "model_states")]
    optimizers = [_load(file)["optimizer_state_dict"] for file in _of_ranks(directory, "optim_states")]
    if len(optimizers) != models[0]["dp_world_size"]:
        raise EOFError(f"{len(optimizers)} of {models[0]['dp_world_size']} ranks' optimizer states are there")
    make = _from_parameter_shards if "fp32_flat_groups" in optimizers[0] else _from_flat_groups
    weights = dict(make(models, optimizers))
    buffers = models[0]["buffer_names"]
    weights |= {name: StoredTensor.of(tensor) for name, tensor in models[0]["module"].items() if name in buffers}
    shared = {name: weights[kept] for name, kept in models[0]["shared_params"].items() if kept in weights}
    return Checkpoint(weights | shared, *_progress(models[0]))


def _of_ranks(directory: Path, kind: str) -> list[Path]:
    """The files of a kind in the order of the ranks that wrote them."""
    ranks = {}
    for file in directory.glob(f"*_{kind}.pt"):
        match = re.search(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_", file.name)
        if match is None or int(match[2]) > 0:
            raise UserError(f"{file}: DeepSpeed checkpoints of a model-parallel run cannot be exported")
        ranks[int(match[1] or 0)] = file
    if sorted(ranks) != list(range(len(ranks))) or not ranks:
        raise EOFError(f"the {kind} of ranks {sorted(ranks)} alone are there")
    return [ranks[rank] for rank in sorted(ranks)]


_Named = Iterator[tuple[str, StoredTensor]]


def _from_flat_groups(models: list[dict[str, Any]], optimizers: list[dict[str, Any]]) -> _Named:
    """ZeRO-1 and 2: each group of parameters is one vector, cut into one piece per rank."""
    for name, tensor in (models[0].get("frozen_param_fragments") or {}).items():
        yield name, StoredTensor.of(tensor)
    paddings = optimizers[0].get("param_alignment_paddings")
    for group, shapes in enumerate(models[0]["param_shapes"]):
        pieces = [optimizer["single_partition_of_fp32_groups"][group] for optimizer in optimizers]
        start = 0
        for index, (name, shape) in enumerate(shapes.items()):
            yield name, _joined(shape, [(pieces, start, shape.numel())])
            start += shape.numel() + (paddings[group][index] if paddings else 0)


def _from_parameter_shards(models: list[dict[str, Any]], optimizers: list[dict[str, Any]]) -> _Named:
    """ZeRO-3: each parameter is cut into one piece per rank, and a rank's pieces lie one after the other."""
    world = len(optimizers)
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        fragments = [model["frozen_param_fragments"][name] for model in models]
        yield name, _joined(shape, [([fragment], 0, fragment.numel()) for fragment in fragments])
    start = 0
    for shapes in models[0]["param_shapes"]:
        for name, shape in shapes.items():
            count = -(-shape.numel() // world)  # the last rank's piece is padded
            yield name, _joined(shape, [(optimizer["fp32_flat_groups"], start, count) for optimizer in optimizers])
            start += count


def _joined(shape: torch.Size, spans: list[tuple[list[Tensor], int, int]]) -> StoredTensor:
    """A tensor from spans of vectors that are cut into pieces: (pieces, start, count); padding is cut off."""

    def read() -> Tensor:
        parts = [piece for pieces, start, count in spans for piece in _span(pieces, start, count)]
        return torch.cat(parts)[: shape.numel()].view(shape)

    return StoredTensor(shape, spans[0][0][0].dtype, read)


def _span(pieces: list[Tensor], start: int, count: int) -> Iterator[Tensor]:
    """The parts of a span of a vector that is cut into pieces.

    Example:
        >>> [part.tolist() for part in _span([torch.arange(3), torch.arange(3, 9)], start=1, count=4)]
        [[1, 2], [3, 4]]
    """
    for piece in pieces:
        length = piece.numel()
        if start < length and count > 0:
            part = piece.detach().view(-1)[start : start + count]
            yield part
            count -= part.numel()
            start = 0
        else:
            start -= length if start >= length else 0
