"""Sampling: the transformers backend against plain `generate` in processor time, and whether the tokens are the same.

Plain: batches of 64 in the order of the length of their prompts, each until its last response has ended, with the same
numbers for the draws, in a logits processor; top-p is transformers' own. Both take turns in one process; the order is
reversed from round to round. The model is stories260K, and its responses end at the first exclamation mark too: then
they differ in length as answers of chat rows do (`useful`: the share of the positions of plain batches that are tokens
of a response; it is 0.45 for 16 answers each to 100 rows of Tulu 2).

    python -m benchmarks.generation --model DIRECTORY --out benchmarks/results/generation_cpu.json
    python -m benchmarks.generation --quick
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopPLogitsWarper,
)

from benchmarks.record import side_by_side, write
from ts2_lightning.generation import Decoder, GenerationSettings, Request
from ts2_lightning.generation.backends import TransformersBackend, end_ids, prompt_ids
from ts2_lightning.generation.decoders import draw
from ts2_lightning.toyworld import build_tokenizer

NAMES = ("Lily", "Tom", "Anna", "Ben", "Mia", "Sam", "Sue", "Max", "Jane", "Tim")
OPENINGS = (
    "{name}",
    "Once upon a time, there was a child named {name}.",
    "One day, {name} went to the park with a big red ball.",
    "{name} and the bird were friends. They liked to play",
    "It was a dark night. {name} could not sleep, because the wind was very loud and the trees were moving.",
)
TOP_P = 0.9

Tokens = dict[str, list[int]]
Sizes = dict[str, int]
TARGET: Sizes = {"prompts": 50, "samples": 8, "max_new_tokens": 448, "batch_size": 64}
QUICK: Sizes = {"prompts": 5, "samples": 4, "max_new_tokens": 24, "batch_size": 8}


class Draws(LogitsProcessor):
    """Draws the next token of every row, and leaves `generate` no choice."""

    def __init__(self, uniforms: torch.Tensor) -> None:
        self._uniforms, self._step, self._warp = uniforms, 0, TopPLogitsWarper(TOP_P)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """[B, K], minus infinity but for the token that was drawn."""
        chosen = draw(self._warp(input_ids, scores), self._uniforms[:, self._step])[:, None]
        scores.log_softmax(-1).gather(-1, chosen)  # as the backend reads it
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


def plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: list[Request], batch_size: int
) -> Tokens:
    """The tokens of each request by its key, batch by batch."""
    settings = requests[0].settings
    jobs = sorted(((prompt_ids(tokenizer, one.prompt), one) for one in requests), key=lambda job: len(job[0]))
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens, do_sample=False, eos_token_id=list(settings.end_ids), pad_token_id=0
    )
    tokens: Tokens = {}
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        width = max(len(ids) for ids, _ in batch)
        rows = torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in batch])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in batch])
        uniforms = torch.from_numpy(np.stack([one.uniforms(settings.max_new_tokens) for _, one in batch]))
        answers: Any = model.generate(  # type: ignore[operator]
            rows, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([Draws(uniforms)])
        )
        for (_, one), ids in zip(batch, answers[:, width:].tolist(), strict=True):
            ends = [place + 1 for place, token in enumerate(ids) if token in settings.end_ids]
            tokens[one.key] = ids[: min(ends, default=len(ids))]
    return tokens


def backend(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: list[Request], batch_size: int
) -> Tokens:
    """The same from the transformers backend."""
    made = TransformersBackend(model, tokenizer, batch_size).complete(requests)
    return {response.key: list(response.ids or ()) for response in made}


WAYS: dict[str, Callable[..., Tokens]] = {"plain generate": plain, "backend": backend}


def load(place: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a directory, or a random one."""
    if place is not None:
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), AutoTokenizer.from_pretrained(place)
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config), tokenizer


def requests_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes) -> list[Request]:
    """Every sample of every prompt."""
    marks = [number for number in range(len(tokenizer)) if "!" in str(tokenizer.convert_ids_to_tokens(number))]
    ends = tuple(sorted({*end_ids(model.generation_config, tokenizer), *marks}))
    settings = GenerationSettings("", Decoder(top_p=TOP_P), sizes["max_new_tokens"], ends)
    texts = [opening.format(name=name) for name in NAMES for opening in OPENINGS][: sizes["prompts"]]
    return [Request(text, index, settings) for text in texts for index in range(sizes["samples"])]


def measure(place: Path | None, sizes: Sizes, rounds: int, threads: int) -> dict[str, Any]:
    """Processor seconds of each way, their ratios to `generate`, and what the responses are like.

    `differing` is the number of responses with other tokens. Logits are rounded differently in another batch, so a draw
    that falls on the border of two tokens, about one of a hundred thousand, may give the other one.
    """
    torch.set_num_threads(threads)
    model, tokenizer = load(place)
    requests = requests_of(model, tokenizer, sizes)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    tokens: dict[str, Tokens] = {}
    for turn in range(rounds):
        for way in list(WAYS)[:: 1 if turn % 2 == 0 else -1]:
            started = time.process_time()
            tokens[way] = WAYS[way](model.eval(), tokenizer, requests, sizes["batch_size"])
            seconds[way].append(time.process_time() - started)
            print(f"{way:15} {seconds[way][-1]:8.1f} s", flush=True)
    differing = [key for key, ids in tokens["backend"].items() if ids != tokens["plain generate"][key]]
    order = sorted(requests, key=lambda one: len(prompt_ids(tokenizer, one.prompt)))
    in_order = [len(tokens["backend"][one.key]) for one in order]
    batches = [in_order[at : at + sizes["batch_size"]] for at in range(0, len(in_order), sizes["batch_size"])]
    lengths = sorted(in_order)
    return {
        "responses": len(lengths),
        "tokens": sum(lengths),
        "useful": round(sum(lengths) / sum(max(batch) * len(batch) for batch in batches), 3),
        "length": {"median": statistics.median(lengths), "p90": lengths[len(lengths) * 9 // 10], "most": lengths[-1]},
        "tokens_per_processor_second": {way: round(sum(lengths) / statistics.median(seconds[way]), 1) for way in WAYS},
        "differing": len(differing),
        "results": side_by_side(seconds, "plain generate", "to_plain_generate"),
    }


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of the model (default: a small random one)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--samples", type=int, help="of each prompt")
    parser.add_argument("--quick", action="store_true", help="toy sizes: whether it runs, not how fast")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    sizes = dict(QUICK if options.quick else TARGET)
    sizes["samples"] = options.samples or sizes["samples"]
    figures = measure(options.model, sizes, options.rounds, options.threads)
    print(json.dumps(figures, indent=2))
    write(options.out, {"sizes": sizes, "rounds": options.rounds, **figures})


if __name__ == "__main__":
    main()
