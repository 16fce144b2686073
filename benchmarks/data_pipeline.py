"""Time from a file of conversations to token ids, and from those to batches, against `datasets.map` and a plain loader.

    python -m benchmarks.data_pipeline --data ../shared/data/sft/ultrafeedback_binarized_train_1000.jsonl.gz --out FILE

Both sides read the same rows (`messages`), apply the same ChatML template with the same tokenizer, a byte-level BPE of
32,000 tokens that is trained on the rows, mark the assistant's tokens and cut at the same length; a test holds their
results equal. The other side is what a training script does: `apply_chat_template` with an assistant mask (which needs
a template with generation marks) in `datasets.map`, in one process and in one per core, and a shuffling DataLoader
that pads in its collate function. Subjects take turns; processor seconds, those of child processes included. Ratios are
ours to theirs in the same round: median and quartiles.

- tokenise: from the file, nothing cached
- start: again, from each side's own cache
- load: the batches of an epoch, without worker processes; padding is the share of positions that hold no token
"""

import argparse
import gzip
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from benchmarks import record
from ts2_lightning.data import SFTData

CONTROLS = ["<|im_start|>", "<|im_end|>", "<|end_of_text|>"]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama-3 cuts text before it merges."""

MARKED_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
)
BATCH = 8

Conversation = list[dict[str, str]]


def conversations(path: Path, rows: int) -> Iterator[Conversation]:
    """So many conversations of a .jsonl.gz file, repeated as often as needed, without those that have an empty turn."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        read = [json.loads(line)["messages"] for line in file]
    full = [messages for messages in read if all(message["content"].strip() for message in messages)]
    return itertools.islice(itertools.cycle(full), rows)


def write_rows(path: Path, rows: Iterator[Conversation]) -> Path:
    """The rows as a .jsonl file."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"messages": messages}) + "\n" for messages in rows)
    return path


def train_tokenizer(directory: Path, rows: Iterator[Conversation], size: int = 32_000) -> str:
    """A byte-level BPE of the rows, saved in a directory."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator((message["content"] for messages in rows for message in messages), trainer)
    backend.add_special_tokens(CONTROLS)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=CONTROLS[-1]).save_pretrained(directory)
    return str(directory)


# Ours ---------------------------------------------------------------------------------------------------------


def ours(file: Path, tokenizer: str, max_length: int, cache: bool) -> SFTData:
    """The datamodule, set up."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    data = SFTData(
        str(file), tokenizer=tokenizer, template="chatml", format="messages", max_length=max_length, cache=cache,
        micro_batch_size=BATCH, max_rejects=1.0,
    )  # fmt: skip
    data.setup("fit")
    return data


# Theirs -------------------------------------------------------------------------------------------------------


def theirs(file: Path, tokenizer: str, max_length: int, cache: Path, processes: int = 1) -> Any:
    """`datasets.map` with `apply_chat_template`: input_ids and labels."""
    from datasets import load_dataset

    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        encoded: Any = fast.apply_chat_template(
            batch["messages"], chat_template=MARKED_CHATML, return_assistant_tokens_mask=True, return_dict=True,
            truncation=True, max_length=max_length,
        )  # fmt: skip
        labels = [
            [token if learnt else -100 for token, learnt in zip(ids, mask, strict=True)]
            for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        ]
        return {"input_ids": encoded["input_ids"], "labels": labels}

    # A fork of a process whose tokenizer has used threads may hang if it uses them too.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if processes == 1 else "false"
    raw = load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))
    return raw.map(encode, batched=True, remove_columns=["messages"], num_proc=None if processes == 1 else processes)


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A collate function as scripts have it."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


# Measuring ----------------------------------------------------------------------------------------------------


def measured(function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Processor seconds of a call, child processes included, and what it gives."""
    before = record.processor_seconds()
    result = function()
    return {"processor_seconds": record.processor_seconds() - before}, result


def epoch(loader: Any) -> tuple[int, int]:
    """Tokens and positions of all batches."""
    tokens = positions = 0
    for batch in loader:
        tokens += int(batch["attention_mask"].sum())
        positions += batch["input_ids"].numel()
    return tokens, positions


def measure(file: Path, tokenizer: str, max_length: int, scratch: Path) -> dict[str, dict[str, float]]:
    """One round: what each subject took."""
    cores = len(os.sched_getaffinity(0))
    turns: dict[str, dict[str, float]] = {}

    def run(name: str, function: Callable[[], Any]) -> Any:
        turns[name], result = measured(function)
        print(f"{name:36} {turns[name]['processor_seconds']:8.2f} s", file=sys.stderr)
        return result

    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        os.environ["TS2_CACHE_DIR"] = directory
        hub = [Path(directory) / f"datasets-{processes}" for processes in (1, cores)]
        run("tokenise: datasets.map", lambda: theirs(file, tokenizer, max_length, hub[0]))
        if cores > 1:
            many = f"tokenise: datasets.map, {cores} processes"
            run(many, lambda: theirs(file, tokenizer, max_length, hub[1], cores))
        run("tokenise: ours", lambda: ours(file, tokenizer, max_length, cache=True))
        table = run("start: datasets.map", lambda: theirs(file, tokenizer, max_length, hub[0]))
        data = run("start: ours", lambda: ours(file, tokenizer, max_length, cache=True))
        plain: Any = DataLoader(table, batch_size=BATCH, shuffle=True, collate_fn=pad)
        for name, loader in (("load: plain DataLoader", plain), ("load: ours", data.train_dataloader())):
            tokens, positions = run(name, partial(epoch, loader))
            turns[name] |= {"padding": 1 - tokens / positions, "tokens": tokens}
    tokens = len(data.rows("train").ids)
    return {name: {"tokens": tokens} | row for name, row in turns.items()}


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The medians, and tokens in a processor second."""
    result = {}
    for name in rounds[0]:
        row = {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        row["tokens_per_processor_second"] = round(row["tokens"] / row["processor_seconds"])
        result[name] = {key: round(value, 4) for key, value in row.items()}
    return result


def ratios(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Ours to theirs, side by side in each round: medians and quartiles."""
    pairs = {
        "tokenise": ("tokenise: ours", "tokenise: datasets.map"),
        "start": ("start: ours", "start: datasets.map"),
        "load": ("load: ours", "load: plain DataLoader"),
    }
    key = "processor_seconds"
    return {
        name: record.spread("to_theirs", (one[mine][key] / one[other][key] for one in rounds))
        for name, (mine, other) in pairs.items()
    }


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a .jsonl.gz file whose rows have messages")
    parser.add_argument("--rows", type=int, default=5000, help="the file is repeated until there are so many")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        file = write_rows(scratch / "rows.jsonl", conversations(arguments.data, arguments.rows))
        tokenizer = train_tokenizer(scratch / "tokenizer", conversations(arguments.data, 1000))
        rounds = [measure(file, tokenizer, arguments.max_length, scratch) for _ in range(arguments.rounds)]
    figures = {"ratios": ratios(rounds), "results": summary(rounds)}
    for rows in figures.values():
        record.show(rows)
    record.write(arguments.out, {"rows": arguments.rows, "rounds": arguments.rounds, **figures})


if __name__ == "__main__":
    main()
