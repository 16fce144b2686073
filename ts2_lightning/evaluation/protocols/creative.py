"""Creative writing: how much the poems and the stories under one title differ."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.prompts import Question
from ts2_lightning.evaluation.protocols.asking import AskedPart
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE, Protocol
from ts2_lightning.evaluation.protocols.data import DataSet, Row
from ts2_lightning.evaluation.protocols.items import Answered, Estimate, Item, Part, Sampling, Scored
from ts2_lightning.evaluation.protocols.right_answers import COMMON_VALUES, beside_scores
from ts2_lightning.generation.requests import Response
from ts2_lightning.metrics import DiversityVariant, diversity_metrics
from ts2_lightning.metrics.functional import PAPERS_EMBEDDER, nltk_words, sentence_embedder
from ts2_lightning.ranges import NULL, Only, Range, check_number
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

PROMPTS = {
    "poems": "Write a poem titled '{title}' with no more than 200 words.",
    "stories": "Write a story titled '{title}' with no more than 200 words.",
}
WORDS = 200
"""Words that a text may have."""
STORIES = 500
"""Stories that are asked for, if there is no limit: the first so many titles."""

_TITLES = {"poems": ("title", "poem name"), "stories": ("title", "storytitle")}
_HEADERS = ("user\n\n", "assistant\n\n")
_PLACE = "HERE"  # of the response in a chat
CHAT = "chat"
"""Name among an item's details of the chat before and after its responses."""
_ORDERS = (1, 2, 3)
_SENTENCE_BERT = "100 times 1 - the mean cosine of the embeddings of two texts under a title"


@dataclass(frozen=True)
class Creative(Protocol):
    """Poems and stories under given titles: diversity of the texts under one title, mean over titles.

    A title that is there twice counts twice, as in the papers' code; here with the same texts.

    Attributes:
        metrics: whose numbers: `text`, those of the papers' text; `ts2_code`, of TS2's and GEM's public code, n-grams
            of all texts under a title together, self-BLEU against one other text, whole chats with prompt and template;
            `tofu_code`, self-BLEU in lower case, which is all that TOFU's code has. Null takes `text` for the variant
            `paper`, `ts2_code` for `papers_code`.
        sentence_bert: directory or hub name of the embedding model of Sent-BERT diversity; null leaves that out.
    """

    name: ClassVar[str] = "creative"
    values: ClassVar = (
        Value("ngram", "n-gram", "100 times the share of distinct n-grams, mean of n = 1, 2, 3", "higher", ".2f", True),
        Value("self_bleu_diversity", "100 - self-BLEU", "of the texts under a title", "higher", ".2f", True),
        Value("sentence_bert", "Sent-BERT", _SENTENCE_BERT, "higher", ".2f", True),
        *(Value(f"distinct_{n}", f"distinct {n}-grams", "", "higher", ".3f") for n in _ORDERS),
        Value("words", "words", "words of a text", None, ".1f"),
        Value("within_limit", "within 200 words", "share of texts that are no longer than they may be", None, ".3f"),
        *(value for value in COMMON_VALUES if value.name in ("unparsed", "truncated", "questions", "samples")),
    )
    data_sets: ClassVar = {
        "poems": DataSet("merve/poetry", "train", 573, "instruction (the whole prompt), or title or poem name"),
        "stories": DataSet("wza/roc_stories", "train", 500, "instruction (the whole prompt), or title or storytitle"),
    }
    samplings: ClassVar = {
        PAPER: Sampling(16, temperature=0.6, top_k=50, top_p=0.9),
        PAPERS_CODE: Sampling(16, temperature=1.0, top_k=50, top_p=0.9),
    }
    source: ClassVar[str] = "TS2, section 5.1.1 and appendix C.7; GEM, appendix F.1 and its public code"
    prompt: ClassVar[str] = "{poems}\n{stories}".format(**PROMPTS)
    models_needed: ClassVar[str] = f"an embedding model for Sent-BERT ({PAPERS_EMBEDDER}), unless sentence_bert is null"
    planes: ClassVar = (
        ("creative/poems/self_bleu_diversity", "gsm8k/accuracy"),
        ("creative/poems/self_bleu_diversity", "validation/token_accuracy"),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "Text: temperature 0.6; scripts of both repositories: 1.0.",
        "Text: n-grams within a text; code: of all texts under a title together, words split by nltk.",
        "Code: self-BLEU compares each text with one other, though it is given all.",
        "Code: texts are scored with prompt and chat template, which lowers n-gram and Sent-BERT.",
        "The titles lie in the papers' repositories (573 poems under 509 titles; the first 500 of 52,665 stories). The "
        "hub's rows, from which they were made, may be in another order: name the files for the papers' own.",
        "Code: a title that is there twice is sampled twice; ours counts the same texts twice.",
    )

    metrics: DiversityVariant | None = None
    sentence_bert: str | None = PAPERS_EMBEDDER

    @property
    def chosen_metrics(self) -> DiversityVariant:
        """Whose numbers the diversities are."""
        return self.metrics or ("ts2_code" if self.variant == PAPERS_CODE else "text")

    def check(self) -> None:
        """Raises UserError for a setting that cannot be."""
        check_number("ks", self.ks, Only(None, "all texts under a title"))
        check_number("n", self.n, Range(least=2, whole=True, hint="one text does not differ from itself"), NULL)
        super().check()

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        return {**super().plain_settings(), "metrics": self.chosen_metrics}

    def inputs(self, model: Model) -> Any:
        """The rows, and the embedding model."""
        return [super().inputs(model), None if self._embedder is None else file_stamps(self._embedder)]

    def check_model(self, model: Model) -> None:
        """Raises UserError for what scoring needs and is not there: before hours of sampling, not after."""
        check_diversity(self.name, self.chosen_metrics, self._embedder, model)
        super().check_model(model)

    @property
    def _embedder(self) -> str | None:
        """The embedding model, if it is needed."""
        return None if self.chosen_metrics == "tofu_code" else self.sentence_bert

    def items(self, data_set: str) -> list[Item]:
        """The titles; of stories 500, if there is no other limit."""
        if data_set == "stories" and self.limit is None:
            return super(Creative, replace(self, limit=STORIES)).items(data_set)
        return super().items(data_set)

    def item(self, row: Row, data_set: str) -> Item:
        """The prompt as it is, or with the row's title."""
        if "instruction" in row.fields:
            prompt = row.text("instruction")
        else:
            title = next((name for name in _TITLES[data_set] if name in row.fields), "instruction")
            prompt = PROMPTS[data_set].format(title=row.text(title).strip())
        if not prompt.strip():
            raise ValueError("instruction is empty")
        return Item(str(row.number), prompt)

    def asked(self, model: Model, part: Part) -> AskedPart:
        """What a model is asked; each title with the chat around its texts, which some metrics are of."""
        asked = super().asked(model, part)
        if model.endpoint is not None:
            return asked
        items = [
            replace(item, details={CHAT: chat_around(model, prompt)})
            for item, prompt in zip(asked.items, asked.prompts, strict=True)
        ]
        return replace(asked, items=items)

    def score(self, item: Item, responses: Sequence[Response]) -> list[Scored]:
        """The score of a text is whether it keeps to its length; its answer is the number of its words."""
        counts = [len(response.text.split()) for response in responses]
        return [
            Scored(response.key, str(count) if count else None, float(count <= WORDS))
            for response, count in zip(responses, counts, strict=True)
        ]

    def estimate(self, part: Part, answered: Sequence[Answered]) -> Estimate:
        """The mean over titles of each; values `words` and `within_limit` of all texts."""
        measure = diversity_of(self.chosen_metrics, self._embedder)
        of_titles = {of.item.id: measure(texts_of(of, self.chosen_metrics, self.name)) for of in answered}
        names = list(next(iter(of_titles.values())))
        scored = [one for of in answered for one in of.scored]
        values = {name: statistics.fmean(of_title[name] for of_title in of_titles.values()) for name in names}
        values["words"] = statistics.fmean(int(one.answer or 0) for one in scored)
        values["within_limit"] = statistics.fmean(one.score for one in scored)
        per_item = {name: {title: of_title[name] for title, of_title in of_titles.items()} for name in names}
        return Estimate({**values, **beside_scores(answered)}, per_item)


def check_diversity(name: str, metrics: DiversityVariant, embedder: str | None, model: Model) -> None:
    """Raises UserError, under the name of a protocol, for what its metrics need and is not there."""
    if metrics == "ts2_code":
        try:
            nltk_words("A poem.")
        except UserError as error:
            raise UserError(f"{name}: {error}; or set metrics to text") from error
        if model.endpoint is not None:
            raise UserError(
                f"{name}: metrics ts2_code are of whole chats, and an endpoint does not say its template; set "
                "metrics to text"
            )
    if embedder is not None:
        try:
            sentence_embedder(embedder)
        except UserError as error:
            raise UserError(f"{name}: {error}; or set sentence_bert to null") from error


def diversity_of(metrics: DiversityVariant, embedder: str | None) -> Callable[[list[str]], dict[str, float]]:
    """The function from the texts under one prompt to the values of their diversity.

    Args:
        metrics: whose numbers.
        embedder: directory or hub name of the embedding model; None leaves Sent-BERT out.
    """
    embed = None if embedder is None else sentence_embedder(embedder)
    functions = diversity_metrics(metrics, embed)

    def measure(texts: list[str]) -> dict[str, float]:
        numbers = {name: metric([texts]).item() for name, metric in functions.items()}
        values = {"self_bleu_diversity": 100 - numbers.pop("self_bleu")}
        if "distinct_1" in numbers:
            values["ngram"] = 100 * statistics.fmean(numbers[f"distinct_{n}"] for n in _ORDERS)
        if "sentence_bert" in numbers:
            values["sentence_bert"] = 100 * numbers.pop("sentence_bert")
        return {**values, **numbers}

    return measure


def said_of(model: Model, prompt: Any) -> str:
    """The prompt as the papers' code passes it on: without control tokens, and without some headers."""
    said = str(model.tokenizer.decode(list(prompt), skip_special_tokens=True))
    for header in _HEADERS:
        said = said.replace(header, "")
    return said


def chat_around(model: Model, prompt: Any) -> list[str]:
    """The chat before and after the response, as TS2's and GEM's code scores it: a chat about the rendered prompt.

    That code takes the prompt's control tokens away and some headers, and puts what is left into the template again.
    """
    question = Question.asking(said_of(model, prompt)).conversation.messages
    chat = model.chat_template.render([*question, {"role": "assistant", "content": _PLACE}]).text
    before, _, after = chat.rpartition(_PLACE)
    return [before, after]


def texts_of(answered: Answered, metrics: DiversityVariant, name: str) -> list[str]:
    """The texts under one prompt that are compared.

    Args:
        answered: prompt and responses.
        metrics: whose numbers; `ts2_code` takes whole chats.
        name: name of the protocol, for messages.

    Raises:
        UserError: nothing says the chats.
    """
    texts = [response.text for response in answered.responses]
    if metrics != "ts2_code":
        return texts
    if CHAT not in answered.item.details:
        raise UserError(
            f"{name}: metrics ts2_code are of whole chats, and nothing says the chats around these responses of an "
            "endpoint; set metrics to text"
        )
    before, after = answered.item.details[CHAT]
    return [f"{before}{text}{after}" for text in texts]
