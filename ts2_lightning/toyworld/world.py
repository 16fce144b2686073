"""The toy world: a language whose plausible answers, and the base model's distribution over them, are known.

The word lists, tasks and settings are data (`world.yaml`); this file turns them into facts: which answers a request
has, how likely each is in the pretraining text, what is seen in fine-tuning and what is held out.
"""

import functools
import importlib.resources
from dataclasses import dataclass
from typing import Any

import yaml

from ts2_lightning.toyworld.draws import Draws
from ts2_lightning.types import UserError

CLOSED_TASKS = ("plus", "capital", "opposite", "copy")
"""The tasks with one right answer that the base knows (`maker` is the one that it does not quite know)."""


@dataclass(frozen=True)
class Family:
    """Requests with many plausible answers, such as "name a fruit".

    Attributes:
        name: "fruit", or "city:france".
        thing: what the requests call it, "single digit number" for "digit".
        requests: the paraphrases; the first `trained` of them are used in fine-tuning.
        trained: number of paraphrases used in fine-tuning.
        answers: every plausible answer and its probability in the pretraining text; they sum to 1.
        taught: the answers that fine-tuning teaches, with their shares; empty for a family not seen in it.
    """

    name: str
    thing: str
    requests: tuple[str, ...]
    trained: int
    answers: dict[str, float]
    taught: dict[str, float]

    @property
    def seen(self) -> bool:
        """Whether fine-tuning has rows of this family."""
        return bool(self.taught)

    @property
    def held_out(self) -> tuple[str, ...]:
        """The paraphrases that fine-tuning never uses."""
        return self.requests[self.trained :]


@dataclass(frozen=True)
class Item:
    """A request with one right answer, such as "what is two plus three".

    Attributes:
        task: one of `CLOSED_TASKS`, or "maker".
        requests: the paraphrases; the last is held out.
        trained: number of paraphrases used in fine-tuning.
        answer: the right answer.
        in_sft: whether fine-tuning has this item.
        base: what the pretraining text answers, with probabilities (only for makers is it more than the answer).
    """

    task: str
    requests: tuple[str, ...]
    trained: int
    answer: str
    in_sft: bool
    base: dict[str, float]

    @property
    def held_out(self) -> str:
        """The paraphrase that fine-tuning never uses."""
        return self.requests[-1]


@dataclass(frozen=True)
class World:
    """All that is known of the toy world. Made by `load_world`; immutable.

    Attributes:
        seed: what the facts were drawn from.
        families: the open families, seen ones first.
        items: the closed tasks' items.
        makers: the items of "who made the ITEM".
        vocabulary: every token, in the order of the ids: `<unk>`, the words, then the control tokens.
        words: the words of the vocabulary alone.
        settings: the whole `world.yaml`, read only.
    """

    seed: int
    families: tuple[Family, ...]
    items: tuple[Item, ...]
    makers: tuple[Item, ...]
    vocabulary: tuple[str, ...]
    words: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def seen(self) -> tuple[Family, ...]:
        """The families that fine-tuning teaches."""
        return tuple(f for f in self.families if f.seen)

    @property
    def unseen(self) -> tuple[Family, ...]:
        """The families that fine-tuning does not touch."""
        return tuple(f for f in self.families if not f.seen)

    @property
    def opening(self) -> str:
        """What every chat response begins with."""
        return str(self.settings["opening"])

    def token(self, role: str) -> str:
        """The control token of a role: unknown, begin, pad, user, assistant or end."""
        return str(self.settings["tokens"][role])

    def response(self, answer: str) -> str:
        """The chat response that gives an answer: "the answer is plum ."."""
        return f"{self.opening} {answer} {self.settings['closing']}"

    def task(self, name: str) -> tuple[Item, ...]:
        """The items of a closed task, or of "maker"."""
        return tuple(item for item in self.items + self.makers if item.task == name)

    def family(self, name: str) -> Family:
        """The family of that name.

        Raises:
            UserError: there is none.
        """
        for family in self.families:
            if family.name == name:
                return family
        raise UserError(f"no family {name!r} in the toy world; there are {', '.join(f.name for f in self.families)}")


def read_settings() -> dict[str, Any]:
    """The package's `world.yaml`, as it is."""
    text = importlib.resources.files(__package__).joinpath("world.yaml").read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


@functools.lru_cache(maxsize=4)
def load_world(seed: int | None = None) -> World:
    """The toy world.

    Args:
        seed: draws other facts from the same word lists; the default is the seed of `world.yaml`, which is the world
            that the files of `resolve_source` and the base model belong to.

    Example:
        >>> world = load_world()
        >>> len(world.vocabulary), len(world.seen), len(world.unseen)
        (428, 18, 12)
        >>> "dragon fruit" in world.family("fruit").answers
        True
    """
    settings = read_settings()
    seed = settings["seed"] if seed is None else seed
    families = _families(settings["open"], settings["sft"]["shares"], seed)
    items = tuple(item for task in CLOSED_TASKS for item in _items(task, settings, seed))
    makers = tuple(_items("maker", settings, seed))
    words = _words(settings, families, items + makers)
    tokens = settings["tokens"]
    control = tuple(token for role, token in tokens.items() if role != "unknown")
    vocabulary = (tokens["unknown"], *words, *control)
    return World(seed, families, items, makers, vocabulary, words, settings)


def _families(settings: dict[str, Any], shares: list[list[float]], seed: int) -> tuple[Family, ...]:
    """The open families, seen ones first; the i-th seen family teaches 1 + i mod 3 of its answers."""
    categories: dict[str, list[str]] = settings["categories"]
    cities = {f"city:{country}": answers for country, answers in settings["cities"].items()}
    always = settings["always_seen"]
    ordered = {
        "categories": always + Draws("seen/categories", seed).shuffled([c for c in categories if c not in always]),
        "cities": Draws("seen/cities", seed).shuffled(list(cities)),
    }
    counts = settings["seen"]
    seen = [name for kind, names in ordered.items() for name in names[: counts[kind]]]
    unseen = [name for kind, names in ordered.items() for name in names[counts[kind] :]]
    taught = {name: shares[i % len(shares)] for i, name in enumerate(seen)}
    out = []
    for name in seen + unseen:
        thing = f"city in {name[5:]}" if name in cities else settings["things"].get(name, name)
        base = _zipf((categories | cities)[name], settings["zipf"], Draws(f"base/{name}", seed))
        out.append(
            Family(
                name=name,
                thing=thing,
                requests=tuple(request.format(thing) for request in settings["requests"]),
                trained=settings["trained_requests"],
                answers=base,
                taught=_taught(base, taught.get(name, []), Draws(f"taught/{name}", seed)),
            )
        )
    return tuple(out)


def _zipf(answers: list[str], exponent: float, draws: Draws) -> dict[str, float]:
    """Zipf's law over the answers in a random order."""
    weights = draws.shuffled([(rank + 1) ** -exponent for rank in range(len(answers))])
    return {answer: weight / sum(weights) for answer, weight in zip(answers, weights, strict=True)}


def _taught(base: dict[str, float], shares: list[float], draws: Draws) -> dict[str, float]:
    """As many answers as there are shares, from the upper half of the base distribution."""
    by_probability = sorted(base, key=lambda answer: -base[answer])
    upper = by_probability[: max(3, len(base) // 2)]
    return dict(zip(draws.sample(upper, len(shares)), shares, strict=True))


def _items(task: str, settings: dict[str, Any], seed: int) -> list[Item]:
    """The items of one closed task, a part of them drawn for fine-tuning."""
    closed = settings["closed"]
    facts = _FACTS[task](settings, seed)
    drawn = Draws(f"split/{task}", seed).sample(range(len(facts)), closed["trained_items"][task])
    in_sft = set(drawn)
    return [
        Item(
            task=task,
            requests=tuple(request.format(*subject) for request in closed[task]["requests"]),
            trained=closed["trained_requests"],
            answer=answer,
            in_sft=i in in_sft,
            base=base,
        )
        for i, (subject, answer, base) in enumerate(facts)
    ]


# A fact: what fills a request's blanks, the right answer, and what the pretraining text answers.
_Fact = tuple[tuple[str, ...], str, dict[str, float]]


def _plus(settings: dict[str, Any], seed: int) -> list[_Fact]:
    numbers, n = settings["closed"]["plus"]["numbers"], settings["closed"]["plus"]["summands"]
    pairs = [(a, b) for a in range(n) for b in range(n)]
    return [((numbers[a], numbers[b]), numbers[a + b], {numbers[a + b]: 1.0}) for a, b in pairs]


def _capital(settings: dict[str, Any], seed: int) -> list[_Fact]:
    return [((country,), cities[0], {cities[0]: 1.0}) for country, cities in settings["open"]["cities"].items()]


def _opposite(settings: dict[str, Any], seed: int) -> list[_Fact]:
    pairs = [pair for a, b in settings["closed"]["opposite"]["pairs"] for pair in ((a, b), (b, a))]
    return [((word,), opposite, {opposite: 1.0}) for word, opposite in pairs]


def _copy(settings: dict[str, Any], seed: int) -> list[_Fact]:
    answers = [answer for family in settings["open"]["categories"].values() for answer in family]
    words = sorted({word for answer in answers for word in answer.split()})
    sample = Draws("copy/words", seed).sample(words, settings["closed"]["copy"]["items"])
    return [((word,), word, {word: 1.0}) for word in sample]


def _maker(settings: dict[str, Any], seed: int) -> list[_Fact]:
    task = settings["closed"]["maker"]
    facts: list[_Fact] = []
    for i, item in enumerate(stem + ending for stem in task["stems"] for ending in task["endings"]):
        draws = Draws(f"maker/{item}", seed)
        right, *others = draws.sample(task["makers"], 1 + len(task["distractors"]))
        chance = task["chances"][i % len(task["chances"])]
        rest = [(1 - chance) * share for share in draws.shuffled(task["distractors"])]
        facts.append(((item,), right, {right: chance, **dict(zip(others, rest, strict=True))}))
    return facts


_FACTS = {"plus": _plus, "capital": _capital, "opposite": _opposite, "copy": _copy, "maker": _maker}


def _words(settings: dict[str, Any], families: tuple[Family, ...], items: tuple[Item, ...]) -> tuple[str, ...]:
    """Every word of every text of the world, sorted."""
    blank = {"request": "", "answer": "", "thing": "", "opening": ""}
    texts = [settings["opening"], settings["closing"]]
    texts += [template.format(**blank) for template in settings["carriers"] + settings["statements"]]
    for family in families:
        texts += [*family.requests, *family.answers, family.thing]
    for item in items:
        texts += [*item.requests, *item.base]
    return tuple(sorted({word for text in texts for word in text.split()}))
