"""AlpacaEval: the best of N responses by a reward model, and how often it wins against another model's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ts2_lightning.evaluation.estimates import best_of_k, first_best_of_k
from ts2_lightning.evaluation.judges import PAPERS_REWARD_MODEL, Case, RewardModel, RewardSettings
from ts2_lightning.evaluation.judges.reward import SAID
from ts2_lightning.evaluation.measure import Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.evaluation.preferences import (
    bradley_terry,
    first_win_at_k,
    outright,
    weights_of_best,
    win_at_equal_length,
    win_at_k,
)
from ts2_lightning.evaluation.protocols.asking import AskedPart, respond
from ts2_lightning.evaluation.protocols.base import PAPER, PAPERS_CODE
from ts2_lightning.evaluation.protocols.creative import CHAT, chat_around, check_diversity, diversity_of, texts_of
from ts2_lightning.evaluation.protocols.data import DataSet, Row, data_identity, read_data
from ts2_lightning.evaluation.protocols.items import Answered, Estimate, Item, Part, Sampling
from ts2_lightning.evaluation.protocols.judged import BESIDE_VERDICTS, JudgedProtocol, beside_verdicts, leave_room
from ts2_lightning.evaluation.protocols.rewarded import (
    USUAL_REWARD,
    check_format,
    plain_said,
    responses_beside,
    reward_model,
    with_said,
)
from ts2_lightning.evaluation.protocols.right_answers import USUAL_KS, interval
from ts2_lightning.evaluation.protocols.stored import Answers, stored_answers, stores_of
from ts2_lightning.generation.requests import Response
from ts2_lightning.metrics import DiversityVariant
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

_SHOWN = 60  # characters of an instruction in messages


def _described() -> tuple[Value, ...]:
    """Descriptions of the values: of each kind that of one response, then those of the best of k."""
    kinds = [
        ("win_rate", "win rate", "100 times the mean probability of a win, sigmoid(r - r')", ".1f"),
        ("lc_win_rate", "win rate at equal length", "100 times what a regression on lengths leaves of it", ".1f"),
        ("wins", "wins", "100 times the share of responses with the larger reward", ".1f"),
        ("positive", "r > 0", "100 times the share of rewards above 0", ".1f"),
        ("reward", "reward", "of the reward model, on its own scale", ".2f"),
    ]
    values = []
    for name, title, meaning, form in kinds:
        shown = name.endswith("win_rate")
        values.append(Value(name, title, f"{meaning}; of one response", "higher", form, shown))
        for k in USUAL_KS[1:]:
            meant = f"{meaning}; best of {k} by reward"
            values.append(Value(f"{name}_at_{k}", f"{title}, best of {k}", meant, "higher", form, shown and k == 32))
    firsts = [
        ("first_", "win rate, best of the first", ".1f"),
        ("first_positive_", "r > 0, best of the first", ".1f"),
        ("first_reward_", "reward, best of the first", ".2f"),
        ("first_mean_", "reward, mean of the first", ".2f"),
    ]
    values += [
        Value(f"{name}{k}", f"{title} {k}", "", "higher", form) for name, title, form in firsts for k in USUAL_KS
    ]
    return tuple(values)


class Opponent(NamedTuple):
    """What a question's responses are compared with.

    Attributes:
        texts: one output out of a file, or all responses of another run.
        details: what the reward model is shown of them besides.
    """

    texts: Sequence[str]
    details: Mapping[str, str] = {}


@dataclass(frozen=True)
class AlpacaEval(JudgedProtocol):
    """Instructions of AlpacaEval: the best of N responses by a reward model, against another model's.

    A win of reward r against r' is sigmoid(r - r'), the papers' reading after Bradley and Terry; `wins` counts larger
    rewards instead. The best of N is the expectation over all sets of N of the n responses; `papers_code` adds the
    first N. `lc_win_rate` is the win rate at equal length, since reward models like length.

    Attributes:
        reward: reward model; see `RewardSettings`. `reward: DIR` names its directory.
        baseline: what wins are counted against: a file of outputs in AlpacaEval's layout (`instruction`, `output`), or
            a directory with the responses of another run to this protocol, of which the best of N is taken as well.
            Null takes gpt4_1106_preview's outputs from the hub. Instructions without an output there are left out with
            a line.
        metrics: whose numbers of diversity: `text`, `ts2_code` (whole chats) or `tofu_code`. Null takes `text`.
        sentence_bert: directory or hub name of the embedding model of Sent-BERT diversity; null leaves that out.
    """

    name: ClassVar[str] = "alpaca"
    values: ClassVar = (
        *_described(),
        Value("longer", "longer than the other", "share of responses with more characters", None, ".3f"),
        Value("characters", "characters", "characters of a response", None, ".0f"),
        Value("self_bleu_diversity", "100 - self-BLEU", "of the responses to an instruction", "higher", ".2f", True),
        Value("ngram", "n-gram", "100 times the share of distinct n-grams, mean of n = 1, 2, 3", "higher", ".2f"),
        Value("sentence_bert", "Sent-BERT", "100 times 1 - the mean cosine of two responses", "higher", ".2f"),
        *(Value(f"distinct_{n}", f"distinct {n}-grams", "", "higher", ".3f") for n in (1, 2, 3)),
        *BESIDE_VERDICTS,
    )
    data_sets: ClassVar = {"alpaca": DataSet("tatsu-lab/alpaca_eval", "eval", 805, "instruction", name="alpaca_eval")}
    outputs: ClassVar = DataSet(
        "tatsu-lab/alpaca_eval", "eval", 805, "instruction and output", name="alpaca_eval_gpt4_baseline"
    )
    samplings: ClassVar = {
        PAPER: Sampling(32, temperature=0.6, top_k=50, top_p=0.9, max_new_tokens=2048),
        PAPERS_CODE: Sampling(16, temperature=0.6, top_k=50, top_p=0.9, max_new_tokens=2048),
    }
    source: ClassVar[str] = "GEM, section 6.1; TS2, section 5.1 and appendix B; Li et al., AlpacaEval (2023)"
    prompt: ClassVar[str] = "{instruction}"
    models_needed: ClassVar[str] = (
        f"a reward model with one output ({PAPERS_REWARD_MODEL}, 8B); outputs to compare with; an embedding model if "
        "sentence_bert is set"
    )
    planes: ClassVar = (("alpaca/self_bleu_diversity", "alpaca/win_rate_at_32"),)
    deviations: ClassVar[tuple[str, ...]] = (
        "Text of both papers: 32 responses; GEM's script: 16. TS2's table has 32 with the same code (`--n 32`).",
        "Code: the reward is read behind the header of a further answer, and the question is the whole rendered prompt "
        "without control tokens, so a system header of the template stays in it (reward.format papers_code).",
        "Code: the best of the first N; ours: the expectation over all sets of N, which varies less.",
        "Code: outputs of gpt4_1106_preview are joined by their row; ours by their instruction.",
        "Published win rates of one loss differ between the papers (cross-entropy, best of 32: 47.3 in GEM, 29.8 in "
        "TS2): compare models of one paper only.",
        "AlpacaEval's own length control has a term for the difficulty of each instruction, which one model's wins "
        "cannot tell from the rest; ours has none, so the two are not comparable.",
    )

    reward: RewardSettings = USUAL_REWARD
    baseline: str | None = None
    metrics: DiversityVariant | None = None
    sentence_bert: str | None = None

    # Judge and opponents ----------------------------------------------------------------------------------------

    @cached_property
    def _judge(self) -> RewardModel:
        return reward_model(self.reward, self.variant)

    def make_judge(self) -> RewardModel:
        """The reward model; loaded when it is needed, and let go of at the end of a measurement."""
        return self._judge

    @property
    def chosen_metrics(self) -> DiversityVariant:
        """Whose numbers the diversities are."""
        return self.metrics or "text"

    @cached_property
    def _other_run(self) -> Path | None:
        return None if self.baseline is None else responses_beside(f"{self.name}.baseline", self.baseline)

    @cached_property
    def opponents(self) -> dict[str, Opponent]:
        """What each instruction's responses are compared with.

        Raises:
            UserError: there are no outputs, or a row is none.
        """
        if self._other_run is not None:
            [(_, answers)] = stored_answers(self._other_run, self.name, self.parts(), self.sampling.n)
            return {
                item.question: Opponent([one.text for one in of_item], plain_said(item.details))
                for item, of_item in answers
            }
        option, opponents = f"{self.name}.baseline", dict[str, Opponent]()
        for row in read_data(self.outputs, self.baseline, option):
            try:
                opponents.setdefault(row.text("instruction"), Opponent([row.text("output")]))
            except (KeyError, ValueError) as error:
                said = f"no field {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{option} {row.origin}: {said}; wanted are rows with {self.outputs.fields}") from error
        return opponents

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values."""
        plain = super().plain_settings()
        reward = {**plain["reward"], "format": self._judge.format}
        return {**plain, "metrics": self.chosen_metrics, "reward": reward}

    def inputs(self, model: Model) -> Any:
        """The rows, the reward model, and what wins are counted against."""
        if self._other_run is not None:
            against: Any = [file_stamps(path) for path in stores_of(self._other_run)]
        else:
            against = data_identity(self.outputs, self.baseline, f"{self.name}.baseline")
        return [super().inputs(model), against, None if self.sentence_bert is None else file_stamps(self.sentence_bert)]

    def check_model(self, model: Model) -> None:
        """Raises UserError for what scoring needs and is not there: before hours of sampling, not after."""
        check_diversity(self.name, self.chosen_metrics, self.sentence_bert, model)
        check_format(self.name, self._judge, model)
        super().check_model(model)
        if model.responses is None:
            self._compared([(item, []) for item in self.items("alpaca")])

    # Questions --------------------------------------------------------------------------------------------------

    def item(self, row: Row, data_set: str) -> Item:
        """The instruction as it is."""
        instruction = row.text("instruction")
        if not instruction.strip():
            raise ValueError("instruction is empty")
        dataset = row.fields.get("dataset")
        return Item(str(row.number), instruction, details={"dataset": dataset} if isinstance(dataset, str) else {})

    def _compared(self, answers: Answers) -> Answers:
        """The questions that there is something to compare with; a line says how many others there are."""
        kept = [(item, responses) for item, responses in answers if item.question in self.opponents]
        if not kept:
            raise UserError(
                f"{self.name}.baseline: {self.baseline or self.outputs.hub} has no output to any of the {len(answers)} "
                "instructions; name outputs to the same ones"
            )
        if len(kept) < len(answers):
            absent = next(item.question for item, _ in answers if item.question not in self.opponents)
            rank_zero_warn(
                f"{self.name}.baseline: no output to {len(answers) - len(kept)} of {len(answers)} instructions, which "
                f"are left out, such as {absent[:_SHOWN]!r}"
            )
        return kept

    def asked(self, model: Model, part: Part) -> AskedPart:
        """What a model is asked; each instruction with what the papers' code makes of its prompt, where needed."""
        asked = super().asked(model, part)
        if self._judge.format == "papers_code":
            asked = with_said(asked, model)
        if self.chosen_metrics == "ts2_code":
            chats = [chat_around(model, prompt) for prompt in asked.prompts]
            items = [
                replace(item, details={**item.details, CHAT: chat})
                for item, chat in zip(asked.items, chats, strict=True)
            ]
            asked = replace(asked, items=items)
        return asked

    # Scores and values ------------------------------------------------------------------------------------------

    def case(self, item: Item, response: Response) -> Case:
        """The instruction with a response."""
        if self._judge.format == "papers_code" and SAID not in item.details:
            raise UserError(
                f"{self.name}: the format papers_code is of the model's whole prompt, and nothing says it of these "
                "responses; set reward.format to model"
            )
        return replace(Case.answer(item.question, response.text), details=plain_said(item.details))

    def responses(self, model: Model, directory: Path) -> Iterator[tuple[Part, Answers]]:
        """The responses to the instructions that there is something to compare with; no others are made."""
        if model.responses is not None:
            for part, answers in super().responses(model, directory):
                yield part, self._compared(answers)
            return
        for part in self.parts():
            asked = self.asked(model, part)
            pairs = zip(asked.items, asked.prompts, strict=True)
            kept = [(item, prompt) for item, prompt in pairs if item.question in self.opponents]
            items, prompts = [item for item, _ in kept], [prompt for _, prompt in kept]
            chosen = replace(asked, items=items, prompts=prompts)
            yield from leave_room(model, [(part, respond(model, chosen, directory, self.batch_size))])

    def measure(self, model: Model, beside: Path) -> Measured:
        """As of every protocol; the reward model is let go of afterwards."""
        try:
            return super().measure(model, beside)
        finally:
            self._judge.close()

    def estimate(self, part: Part, answered: Sequence[Answered]) -> Estimate:
        """Rewards and wins of the best of k, with and without length, and the diversity of the responses."""
        sides = self._sides(answered)
        ks = self.ks_of(part)
        each, curves = _of_rewards(sides, ks)
        if self.variant == PAPERS_CODE:
            each |= _firsts(sides, ks)
        if part.sampling.n > 1:
            each |= self._diversity(answered)
        means = {name: float(np.mean(numbers)) for name, numbers in each.items()}
        at_equal_length = {_named("lc_win_rate", k): ends[0] for k, ends in curves["lc_win_rate"].items()}
        rates = {name: mean for name, mean in means.items() if name.startswith("win_rate")}
        values = {**rates, **at_equal_length, **means}
        values["longer"] = float(np.mean(sides.longer() > 0))
        values["characters"] = float(sides.lengths.mean())
        per_item = {
            name: {of.item.id: round(float(number), 6) for of, number in zip(answered, numbers, strict=True)}
            for name, numbers in each.items()
        }
        return Estimate({**values, **beside_verdicts(answered)}, per_item, curves)

    def _sides(self, answered: Sequence[Answered]) -> "_Sides":
        opponents = [self.opponents[of.item.question] for of in answered]
        cases = [
            replace(Case.answer(of.item.question, text), details=opponent.details)
            for of, opponent in zip(answered, opponents, strict=True)
            for text in opponent.texts
        ]
        rewards = iter(self._judge.judge(cases))
        theirs = [[_value(next(rewards).value) for _ in opponent.texts] for opponent in opponents]
        return _Sides(
            np.array([[one.score for one in of.scored] for of in answered]),
            np.array(theirs),
            np.array([[len(one.text) for one in of.responses] for of in answered]),
            np.array([[len(text) for text in opponent.texts] for opponent in opponents]),
        )

    def _diversity(self, answered: Sequence[Answered]) -> dict[str, np.ndarray]:
        measure = diversity_of(self.chosen_metrics, self.sentence_bert)
        of_items = [measure(texts_of(of, self.chosen_metrics, self.name)) for of in answered]
        return {name: np.array([of_item[name] for of_item in of_items]) for name in of_items[0]}


class _Sides(NamedTuple):
    """Rewards and lengths of both sides: P prompts, n samples of ours and m of theirs."""

    ours: np.ndarray  # [P, n]
    theirs: np.ndarray  # [P, m]
    lengths: np.ndarray  # [P, n], in characters
    their_lengths: np.ndarray  # [P, m]

    def longer(self) -> np.ndarray:
        """[P, n, m], how many characters longer each of ours is than each of theirs."""
        return self.lengths[:, :, None] - self.their_lengths[:, None, :]


def _of_rewards(sides: _Sides, ks: Sequence[int]) -> tuple[dict[str, np.ndarray], dict[str, dict[int, list[float]]]]:
    """Numbers of each prompt by the names of the values; and the curves."""
    each: dict[str, np.ndarray] = {}
    curves: dict[str, dict[int, list[float]]] = {"win_rate": {}, "lc_win_rate": {}}
    for k in sorted({1, *ks}):
        each[_named("win_rate", k)] = wins = 100 * win_at_k(sides.ours, sides.theirs, k)
        curves["win_rate"][k] = interval(wins)
        curves["lc_win_rate"][k] = _at_equal_length(sides, k)
    for k in sorted({1, *ks}):
        each[_named("wins", k)] = 100 * win_at_k(sides.ours, sides.theirs, k, outright)
        each[_named("positive", k)] = 100 * best_of_k(sides.ours > 0, k)
        each[_named("reward", k)] = best_of_k(sides.ours, k)
    return each, curves


def _at_equal_length(sides: _Sides, k: int) -> list[float]:
    """Win rate of the best of k at equal length, and its interval."""
    ours = weights_of_best(sides.ours, k)
    theirs = weights_of_best(sides.theirs, k) if sides.theirs.shape[1] > 1 else np.ones_like(sides.theirs)
    wins = bradley_terry(sides.ours[:, :, None] - sides.theirs[:, None, :])
    weights = ours[:, :, None] * theirs[:, None, :]
    flat = [table.reshape(len(table), -1) for table in (wins, sides.longer(), weights)]
    return [100 * end for end in win_at_equal_length(*flat)[:3]]


def _firsts(sides: _Sides, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """What the papers' code makes of the first k."""
    each: dict[str, np.ndarray] = {}
    for k in ks:
        each[f"first_{k}"] = 100 * first_win_at_k(sides.ours, sides.theirs, k)
    for k in ks:
        best = first_best_of_k(sides.ours, k)
        each |= {f"first_positive_{k}": 100.0 * (best > 0), f"first_reward_{k}": best}
        each[f"first_mean_{k}"] = sides.ours[:, :k].mean(axis=1)
    return each


def _named(name: str, k: int) -> str:
    return name if k == 1 else f"{name}_at_{k}"


def _value(reward: float | None) -> float:
    assert reward is not None  # a reward model always says a number
    return reward
