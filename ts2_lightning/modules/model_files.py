"""What lies where a model is to be loaded from, looked at before transformers reads it.

Transformers ends in a traceback for some of what can be wrong there. It takes the decoder out of an encoder-decoder and
the body out of a reward model, without a word, and believes whatever size a config states.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.utils import cached_file

from ts2_lightning.json_files import read_object
from ts2_lightning.ranges import COUNT, trouble

FAILURES = (OSError, ValueError, SafetensorError, StrictDataclassError)
"""What a model's files end in where they cannot be loaded."""


class AdapterFoundError(ValueError):
    """An adapter lies where a model was looked for; the message is for the user, and to be told in full."""


INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
_AGAIN = "fetch or write it again"
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_SEEING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "mistral3", "internvl", "idefics3", "smolvlm")
"""Types whose models see images too, and have a language model with its head that text alone goes through."""
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # how the classes are called that a causal language model is saved from
_CLASSIFIER = "ForSequenceClassification"


def read_architecture(path: str, revision: str | None = None, pretrained: bool = True) -> PreTrainedConfig:
    """The config of a causal language model.

    Args:
        path: a directory, or a name on the hub.
        revision: on the hub.
        pretrained: whether its weights are wanted too, so that what they were saved from matters.

    Raises:
        ValueError, OSError: in one line, why there is none.
    """
    architecture, saved_from = _read_config(path, revision)
    _check_causal(architecture, saved_from if pretrained else [])
    return architecture


def read_classifier(path: str, labels: int, revision: str | None = None) -> PreTrainedConfig:
    """The config of a model that classifies texts, such as a reward model.

    Args:
        path: a directory, or a name on the hub.
        labels: number of its outputs that is wanted; a reward model has 1.
        revision: on the hub.

    Raises:
        ValueError, OSError: in one line, why there is none.
    """
    architecture, saved_from = _read_config(path, revision)
    if not any(name.endswith(_CLASSIFIER) for name in saved_from):  # transformers would put a random head on it
        what = f"a {saved_from[0]}" if saved_from else "a model whose config names no class"
        raise ValueError(
            f"it is {what} of type {architecture.model_type}; a model saved from a ...{_CLASSIFIER} is needed"
        )
    if architecture.num_labels != labels:
        raise ValueError(
            f"it has {architecture.num_labels} outputs, by its config.json; a model with {labels} is needed"
        )
    if architecture.get_text_config().pad_token_id is None:
        raise ValueError(
            "its config.json has no pad_token_id, so transformers would read the last column of a batch, which is "
            "padding; write the id of its tokenizer's padding token there"
        )
    return architecture


def _read_config(path: str, revision: str | None) -> tuple[PreTrainedConfig, list[str]]:
    """The config of a model of any kind, and the names of the classes that it was saved from.

    Raises:
        ValueError, OSError: in one line, why there is none.
    """
    if Path(path).is_file():
        raise ValueError("it is a file; name the directory in which it lies")
    file = find_file(path, "config.json", revision) if Path(path).is_dir() else _from_hub(path, "config.json", revision)
    adapter = Path(path, ADAPTER_CONFIG)
    if adapter.is_file():  # transformers would load it by itself, frozen, whatever lies beside it
        raise AdapterFoundError(adapter_hint(path, adapter))
    if file is None:
        on_hub = None if Path(path).is_dir() else find_file(path, ADAPTER_CONFIG, revision)
        if on_hub is not None:
            raise AdapterFoundError(adapter_hint(path, Path(on_hub)))
        raise ValueError("there is no config.json in it")
    stated = read_object(Path(file), "its config.json")
    if not isinstance(stated.get("model_type"), str):
        raise ValueError(f"its config.json has no model_type, which names the kind of model; {_AGAIN}")
    try:
        architecture = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError, StrictDataclassError):
        raise
    except Exception as error:  # a config states anything, and transformers calculates with it
        raise ValueError(f"its config.json cannot be used ({type(error).__name__}: {error})") from error
    for name in _SIZES:
        size = getattr(architecture.get_text_config(), name, None)
        if isinstance(size, int | float) and (wrong := trouble(size, COUNT)):
            raise ValueError(f"in its config.json {name} {wrong}")
    saved_from = stated.get("architectures")
    names = saved_from if isinstance(saved_from, list) else [saved_from]
    return architecture, [name for name in names if isinstance(name, str)]


def adapter_hint(path: str, file: Path) -> str:
    """What a user is told who takes an adapter for a model.

    Args:
        path: Path of the adapter, as the user wrote it.
        file: its `adapter_config.json`.
    """
    try:
        settings = read_object(file, f"its {file.name}")
    except ValueError as error:
        return f"it is a PEFT adapter, no model, and {error}"
    base = settings.get("base_model_name_or_path") or "BASE"
    numbers = [(name, settings.get(key)) for name, key in (("r", "r"), ("alpha", "lora_alpha"))]
    options = "".join(f" --model.lm.adapter.{name} {value}" for name, value in numbers if value)
    if settings.get("target_parameters"):
        options += f" --model.lm.adapter.target_parameters {shlex.quote(json.dumps(settings['target_parameters']))}"
    return (
        f"it is a PEFT adapter of {base!r}, no model: to go on training it, --model.lm.path {base} "
        f"--model.lm.adapter.path {path}{options}; to use it as a model, merge it into its base first (export without "
        "--adapter separate)"
    )


def auto_class(architecture: PreTrainedConfig) -> Any:
    """Transformers' class that loads the causal language model of a config."""
    seeing = architecture.model_type in _SEEING
    return AutoModelForImageTextToText if seeing else AutoModelForCausalLM


def _check_causal(architecture: PreTrainedConfig, classes: list[str]) -> None:
    """Whether a model is a causal language model, by its type and by the classes that it was saved from."""
    type_class: Any = auto_class(architecture)._model_mapping.get(type(architecture), None)
    ours = type_class.__name__ if type_class else ""
    is_causal = not classes or any(name == ours or name.endswith(_CAUSAL) for name in classes)
    if ours and is_causal and not architecture.is_encoder_decoder:
        return
    what = f"a {classes[0]}" if classes else "a model"
    kind = ", an encoder-decoder" if architecture.is_encoder_decoder else ""
    raise ValueError(
        f"it is {what} of type {architecture.model_type}{kind}; a decoder-only causal language model is needed"
    )


def check_weight_files(path: str) -> None:
    """Looks at the files with weights in a directory, of which only the headers are read.

    Args:
        path: a directory; of a name on the hub nothing is known before it has been fetched.

    Raises:
        ValueError: in one line, what is wrong with them.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    if (directory / "generation_config.json").is_file():
        read_object(directory / "generation_config.json", "its generation_config.json")
    for name in weight_files(directory):
        _check_header(directory / name)


def weight_files(directory: Path) -> list[str]:
    """The names of the files that hold a model's weights.

    Raises:
        ValueError: there are none, or not all.
    """
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (directory / INDEX).is_file():
        raise ValueError(_no_weights(directory))
    index = read_object(directory / INDEX, f"its {INDEX}")
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"its {INDEX} has no weight_map from weights to files; {_AGAIN}")
    if not isinstance(index.get("metadata"), dict):
        raise ValueError(f"its {INDEX} has no metadata, which transformers needs; {_AGAIN}")
    names = sorted(set(places.values()))
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise ValueError(
            f"{len(absent)} of the {len(names)} files that its {INDEX} names are not there, such as {absent[0]}; "
            f"{_AGAIN}"
        )
    return names


def weight_paths(path: str, revision: str | None = None) -> list[str]:
    """Where the files with a model's weights are, in its directory or fetched from the hub.

    Raises:
        ValueError, OSError: as `weight_files`; or the hub does not answer.
    """
    if Path(path).is_dir():
        return [str(Path(path, name)) for name in weight_files(Path(path))]
    names, index = [WEIGHTS], find_file(path, INDEX, revision)
    if index is not None:
        names = sorted(set(read_object(Path(index), f"its {INDEX}")["weight_map"].values()))
    return [file for name in names if (file := find_file(path, name, revision)) is not None]


def _no_weights(directory: Path) -> str:
    pickled = sorted(file.name for file in directory.glob("*.bin"))
    if not pickled:
        return f"there is neither a {WEIGHTS} nor a {INDEX} in it; without weights set model.lm.init to random"
    return (
        f"its weights are pickled ({pickled[0]}), and to read them may run code; if you trust them, write them as "
        f"{WEIGHTS}, with AutoModelForCausalLM.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY) of transformers"
    )


def _check_header(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise ValueError(f"its {file.name} only says where Git LFS has it; fetch it with git lfs pull")
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"its {file.name} is cut short or damaged ({error}); {_AGAIN}") from error


def _from_hub(path: str, name: str, revision: str | None) -> str | None:
    """A file of a model on the hub, None if the hub says that the model has none of that name.

    Raises:
        ValueError: the hub does not answer, so that nobody knows.
        OSError: the hub has no such model, or does not give it.
    """
    try:
        file: str | None = cached_file(path, name, revision=revision)
    except OSError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise ValueError(
                "it does not answer, or HF_HUB_OFFLINE is set, and nothing of that name was fetched before"
            ) from error
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise
    return file


def find_file(path: str, name: str, revision: str | None = None) -> str | None:
    """A file of a model, in its directory or from the hub; None if it has no such file."""
    file: str | None = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return file
