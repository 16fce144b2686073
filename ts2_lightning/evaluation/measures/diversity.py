"""How much the responses to a prompt differ: n-grams, self-BLEU, and embeddings where there is a model for them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tqdm.auto import tqdm

from ts2_lightning.data import SFTData
from ts2_lightning.evaluation.loading import load_model, read_limits
from ts2_lightning.evaluation.measure import ASKED, PER_ITEM, Measure, Measured
from ts2_lightning.evaluation.model import Model, Rows
from ts2_lightning.evaluation.prompts import Prompt
from ts2_lightning.evaluation.reading import response_cross_entropy
from ts2_lightning.generation import DECODING, Request, Response
from ts2_lightning.generation.store import ResponseStore
from ts2_lightning.metrics.functional import distinct_n, self_bleu, sent_bert_diversity, sentence_embedder
from ts2_lightning.ranges import COUNT, NULL, SEED, Range, check_numbers
from ts2_lightning.runs.stamps import digest, file_stamps
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

ORDERS = (1, 2, 3)
"""The papers' n."""

_NGRAM = "100 times the share of distinct n-grams within a response, mean of n = 1, 2, 3"
_READER = "a token of the responses under the model that reads them, in nats"
_SENTENCE_BERT = "100 times the Sent-BERT diversity of the samples of a prompt"


@dataclass(frozen=True)
class Diversity(Measure):
    """Diversity of sampled responses. They are kept in `responses/` beside `measures/`; a sampling that was killed goes
    on with those that are missing, and more samples or prompts are made in addition.

    Attributes:
        prompts: sources of prompts, in any format of the data room; an answer in a row is left out. Null takes the
            run's `data.validation`.
        format: format of the prompts; null takes the run's, for prompts that are named here `auto`.
        limit: use the first so many prompts.
        samples: responses to each, at least 2.
        temperature: as in the papers' chat experiments, with top_k and top_p; behind the projection of the decoding.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest tokens that reach this mass; 1 keeps all.
        max_new_tokens: tokens of a response, at most.
        seed: seed of the sampling.
        batch_size: responses at a time.
        sentence_bert: directory or hub name of the embedding model of Sent-BERT diversity; null leaves that out.
        reader: directory or hub name of a language model, such as the base model, that reads every response after
            the prompt's text, a blank line between them; null leaves that out. Diversity alone rises when texts turn
            into words without sense, which are improbable to such a model. A text that repeats itself is probable, so
            neither number is enough by itself.
    """

    name: ClassVar[str] = "diversity"
    values: ClassVar[tuple[Value, ...]] = (
        Value("ngram", "n-gram", _NGRAM, "higher", ".2f", True),
        Value("self_bleu_diversity", "100 - self-BLEU", "of the samples of a prompt", "higher", ".2f", True),
        Value("sentence_bert", "Sent-BERT", _SENTENCE_BERT, "higher", ".2f", True),
        Value("distinct_1", "distinct 1-grams", "", "higher", ".3f"),
        Value("distinct_2", "distinct 2-grams", "", "higher", ".3f"),
        Value("distinct_3", "distinct 3-grams", "", "higher", ".3f"),
        Value("mean_probability", "p(sampled)", "", None, ".3f"),
        Value("tokens", "tokens a response", "", None, ".1f"),
        Value("ended", "ended", "", None, ".3f"),
        Value("responses", "responses", "", None, ".0f"),
        Value("reader_cross_entropy", "CE, reader", _READER, "lower", ".2f", True),
    )

    planes: ClassVar[tuple[tuple[str, str], ...]] = (("diversity/self_bleu_diversity", "validation/token_accuracy"),)

    prompts: Rows = None
    format: str | None = None
    limit: int | None = None
    samples: int = 16
    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 0.9
    max_new_tokens: int = 512
    seed: int = 0
    batch_size: int = 64
    sentence_bert: str | None = None
    reader: str | None = field(default=None, metadata={"added": "0.2"})

    def check(self) -> None:
        """Raises UserError for a number out of its range."""
        differing = (Range(above=0, hint="at 0 all responses to a prompt are the same"),)
        check_numbers(
            "",
            self,
            limit=(COUNT, NULL),
            samples=Range(least=2, whole=True),
            max_new_tokens=COUNT,
            seed=SEED,
            batch_size=COUNT,
            **{**DECODING, "temperature": differing},
        )

    def inputs(self, model: Model) -> Any:
        """The files of the prompts, by their content, the embedding model, and the reader if there is one."""
        embedder = None if self.sentence_bert is None else file_stamps(self.sentence_bert)
        reader = [] if self.reader is None else [file_stamps(self.reader)]
        return [model.row_identity("diversity.prompts", self._data(model)), embedder, *reader]

    def check_model(self, model: Model) -> None:
        """Raises UserError if a model that is needed cannot be had: before hours of sampling, not after."""
        if self.reader is not None:
            try:
                read_limits(self.reader)
            except UserError as error:
                raise UserError(f"diversity.reader: {error}") from error
        if self.sentence_bert is not None:
            sentence_embedder(self.sentence_bert, model.device)

    def measure(self, model: Model, beside: Path) -> Measured:
        """The mean over prompts of each.

        `distinct_1` to `distinct_3`: distinct n-grams over n-grams within a response; `ngram`: 100 times their mean;
        `self_bleu_diversity`: 100 - self-BLEU; `sentence_bert`: 100 times the Sent-BERT diversity. And of the responses
        `tokens`, `mean_probability` of the tokens under the model's softmax, and `ended`, the share that came to an
        end; `responses`, how many; `reader_cross_entropy`, of all tokens that the reader makes of a prompt's texts.

        Documents `per_item` and `asked`: the same of each prompt, so that models can be compared prompt by prompt.
        """
        prompts = model.prompts("diversity.prompts", self._data(model), self.limit)
        answered = self._responses(model, prompts)
        texts = [[response.text for response in of_prompt] for of_prompt in answered]
        by_prompt = [
            {**self._of_texts(of_prompt, model.device), **_of_responses(responses)}
            for of_prompt, responses in zip(texts, answered, strict=True)
        ]
        if self.reader is not None:
            nats = self._read(self.reader, prompts, texts, model)
            for values, of_prompt in zip(by_prompt, nats, strict=True):
                if math.isfinite(of_prompt):
                    values["reader_cross_entropy"] = of_prompt
        names = list(dict.fromkeys(name for values in by_prompt for name in values))
        per_item = {
            name: {str(number): values[name] for number, values in enumerate(by_prompt) if name in values}
            for name in names
        }
        means = {name: statistics.fmean(of_prompts.values()) for name, of_prompts in per_item.items()}
        asked = {str(number): digest([prompt.text])[:12] for number, prompt in enumerate(prompts)}
        return Measured({**means, "responses": sum(map(len, answered))}, {PER_ITEM: per_item, ASKED: {"": asked}})

    @staticmethod
    def _read(reader: str, prompts: Sequence[Prompt], texts: list[list[str]], model: Model) -> list[float]:
        """The reader's cross-entropy at each prompt; nan where all texts are empty.

        It gets text in its own tokens, so that no template stands between the two.
        """
        network, tokenizer = load_model(reader, model.device)
        nats = []
        for prompt, of_prompt in zip(
            tqdm(prompts, desc=f"Reading, {model.title}", unit=" prompts"), texts, strict=True
        ):
            before = tokenizer(f"{prompt.text}\n\n").input_ids
            read = [(before, tokenizer(text, add_special_tokens=False).input_ids) for text in of_prompt]
            nats.append(response_cross_entropy(network, read))
        return nats

    def _of_texts(self, texts: Sequence[str], device: str) -> dict[str, float]:
        """The diversities of the texts of one prompt."""
        distinct = {f"distinct_{n}": distinct_n(texts, n) for n in ORDERS}
        values = {
            **distinct,
            "ngram": 100 * statistics.fmean(distinct.values()),
            "self_bleu_diversity": 100 - self_bleu(texts),
        }
        if self.sentence_bert is not None:
            values["sentence_bert"] = 100 * sent_bert_diversity(texts, sentence_embedder(self.sentence_bert, device))
        return values

    def _data(self, model: Model) -> SFTData:
        return model.validation_data("diversity.prompts", self.prompts, format=self.format)

    def _responses(self, model: Model, prompts: Sequence[Prompt]) -> list[list[Response]]:
        """For each prompt its responses; those that are there are not made again."""
        settings = model.generation_settings(self.max_new_tokens, self.seed, self.temperature, self.top_k, self.top_p)
        store = ResponseStore(model.out, self.name, settings, model.name)
        store.add_items({str(number): {"text": prompt.text} for number, prompt in enumerate(prompts)})
        wanted = {
            str(number): [Request(tuple(prompt.ids), index, settings) for index in range(self.samples)]
            for number, prompt in enumerate(prompts)
        }
        return list(
            store.fill(wanted, lambda: model.make_backend(self.batch_size), f"Sampling, {model.title}").values()
        )


def _of_responses(responses: Sequence[Response]) -> dict[str, float]:
    """What is seen of the responses to one prompt without their texts."""
    return {
        "tokens": statistics.fmean(response.tokens for response in responses),
        "mean_probability": statistics.fmean(response.mean_probability or 0.0 for response in responses),
        "ended": statistics.fmean(response.finish == "stop" for response in responses),
    }
