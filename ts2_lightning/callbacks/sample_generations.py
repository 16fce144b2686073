"""Responses that a model writes while it is trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from ts2_lightning.callbacks.step_lines import StepLines
from ts2_lightning.generation import Decoder, GenerationSettings, Response, sample
from ts2_lightning.generation.backends import TransformersBackend, end_ids
from ts2_lightning.metrics.functional import distinct_n, self_bleu
from ts2_lightning.ranges import COUNT, SEED, check_numbers
from ts2_lightning.types import UserError


class SampleGenerations(Callback):
    """Samples responses to the same prompts every so many steps, before the first step and after the last.

    The random numbers follow from `seed` and are the same each time, so a difference between two steps is due to the
    model. Every rank generates, as sharded weights need it, and rank 0 writes:

    - `samples.jsonl` in the run's directory: a line for each step and prompt, with the texts and the mean probability
      of their tokens (before temperature, truncation and projection);
    - TensorBoard's text tab, a table for each prompt;
    - `samples/distinct` (mean over n = 1 to 3 of distinct n-grams over n-grams, within each response),
      `samples/self_bleu`, `samples/tokens`, `samples/ended` (the share that came to an end) and
      `samples/mean_probability`: means over prompts.

    Prompts are turns of a user, rendered as in training; without a chat template they are texts to go on with.
    The weights are those that are trained; an export may round them, and says so in its last line.

    Args:
        prompts: list of prompts, or a file with one in each line.
        every_n_steps: interval of sampling: whenever a multiple of so many optimizer steps is done.
        n: number of samples of each prompt; self-BLEU needs two.
        decoder: distribution that tokens are drawn from.
        max_new_tokens: tokens of a response, at most.
        seed: seed of the samples.
        batch_size: number of responses that are generated together.

    Raises:
        UserError: if an argument is out of its range; in training, if the weights cannot be had as generation needs
            them.
    """

    def __init__(
        self,
        prompts: list[str] | str,
        every_n_steps: int = 100,
        n: int = 4,
        decoder: Decoder = Decoder(),  # noqa: B008
        max_new_tokens: int = 128,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        super().__init__()
        self.prompts = read_prompts(prompts, "SampleGenerations")
        self.every_n_steps = every_n_steps
        self.n = n
        self.decoder = decoder
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.batch_size = batch_size
        check_numbers(
            "SampleGenerations: ",
            self,
            every_n_steps=COUNT,
            n=COUNT,
            max_new_tokens=COUNT,
            seed=SEED,
            batch_size=COUNT,
        )
        self.latest: list[list[Response]] = []
        """For each prompt its samples, as of the last time."""
        self._last_step = 0
        self._sampled_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample from the base model."""
        self._last_step = trainer.global_step
        if trainer.is_global_zero:
            self._lines(trainer).rewind(trainer.global_step)
        if trainer.global_step == 0:
            self._sample(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Sample, if a step was completed after which it is due."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if trainer.global_step % self.every_n_steps == 0:
            self._sample(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample from the trained model."""
        if self._sampled_at != trainer.global_step:
            self._sample(trainer, pl_module)

    def _sample(self, trainer: Trainer, pl_module: Any) -> None:
        self._sampled_at = trainer.global_step
        data: Any = getattr(trainer, "datamodule", None)
        tokenizer, template = getattr(data, "tokenizer", None), getattr(data, "template", None)
        if tokenizer is None:
            raise UserError("SampleGenerations needs a tokenizer; set data.tokenizer")
        model = pl_module.language_model
        prompts = self.prompts if template is None else [_rendered(template, prompt) for prompt in self.prompts]
        ends = sorted({*end_ids(model.generation_config, tokenizer), *getattr(template, "end_of_turn_ids", ())})
        settings = GenerationSettings("", self.decoder, self.max_new_tokens, tuple(ends), self.seed)
        with torch.no_grad(), trainer.precision_plugin.forward_context(), whole_root(pl_module.network) as sharded:
            backend = TransformersBackend(model, tokenizer, self.batch_size, synced=sharded)
            self.latest = sample(backend, prompts, settings, self.n)
        if trainer.is_global_zero:
            self._write(trainer)

    @staticmethod
    def _lines(trainer: Trainer) -> StepLines:
        return StepLines(Path(trainer.default_root_dir) / "samples.jsonl")

    def _write(self, trainer: Trainer) -> None:
        step = trainer.global_step
        metrics = {f"samples/{name}": value for name, value in summary(self.latest).items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        for number, (prompt, samples) in enumerate(zip(self.prompts, self.latest, strict=True)):
            records = [{"text": one.text, "mean_probability": round(_mean_probability(one), 4)} for one in samples]
            self._lines(trainer).add(step, prompt=prompt, samples=records)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text(f"samples/{number}", table(prompt, samples), step)


def read_prompts(prompts: list[str] | str, callback: str) -> list[str]:
    """The list of prompts, or the lines of a file that are not empty.

    Args:
        prompts: List of prompts, or path of a file.
        callback: Name of the callback that asks for them, for messages.

    Raises:
        UserError: if there is no such file, or no prompt.
    """
    if isinstance(prompts, str):
        if not Path(prompts).is_file():
            raise UserError(f"{callback}: prompts: no file {prompts}; give a list of prompts, or such a file")
        prompts = [line for line in Path(prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{callback}: prompts must not be empty")
    return list(prompts)


def summary(answers: Sequence[Sequence[Response]]) -> dict[str, float]:
    """Means over prompts: see `SampleGenerations`.

    Args:
        answers: responses to each prompt, equally many.

    Example:
        >>> answers = [[Response("1", "a b", 3, "stop", 1.0), Response("2", "a b", 2, "length", 1.0)]]
        >>> means = summary(answers)
        >>> means["tokens"], means["ended"], round(means["self_bleu"])
        (2.5, 0.5, 100)
    """
    texts = [[one.text for one in samples] for samples in answers]
    every = [one for samples in answers for one in samples]
    means = {
        "distinct": _mean([_mean([distinct_n(of_prompt, n) for n in (1, 2, 3)]) for of_prompt in texts]),
        "tokens": _mean([one.tokens for one in every]),
        "ended": _mean([one.finish == "stop" for one in every]),
        "mean_probability": _mean([_mean_probability(one) for one in every]),
    }
    if len(texts[0]) > 1:
        means["self_bleu"] = _mean([self_bleu(of_prompt) for of_prompt in texts])
    return means


def table(prompt: str, samples: Sequence[Response]) -> str:
    """Samples of a prompt in Markdown."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    rows = [f"| {_mean_probability(one):.3f} | {cell(one.text)} |" for one in samples]
    return "\n".join([f"**{cell(prompt)}**", "", "| mean probability | response |", "| --- | --- |", *rows])


@contextmanager
def whole_root(network: torch.nn.Module) -> Iterator[bool]:
    """A context in which parts of the network may be called by themselves; true if all ranks must call equally often.

    Raises:
        UserError: if the strategy does not allow it.
    """
    parameters = list(network.parameters())
    if any(isinstance(module, FullyShardedDataParallel) for module in network.modules()):
        raise UserError("SampleGenerations cannot generate under FSDP1; take FSDP2, or leave the callback out")
    if not isinstance(network, FSDPModule):
        yield any(hasattr(parameter, "ds_id") for parameter in parameters)  # ZeRO-3 gathers each module by itself
        return
    network.unshard()  # embeddings, the last norm and the head are the root's; layers gather themselves
    try:
        yield any(isinstance(parameter, DTensor) for parameter in parameters)
    finally:
        network.reshard()


def _rendered(template: Any, prompt: str) -> list[int]:
    return list(template.render_prompt([{"role": "user", "content": prompt}]))


def _mean_probability(response: Response) -> float:
    assert response.mean_probability is not None  # the backend reads it
    return response.mean_probability


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
