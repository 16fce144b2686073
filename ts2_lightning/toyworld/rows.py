"""The toy world's texts: chat rows for fine-tuning, validation and test, and token rows for pretraining.

| split | open families | closed items and makers |
| --- | --- | --- |
| train | seen families, the 5 trained paraphrases, the taught answers in their shares | half of them, 3 paraphrases |
| validation | seen families, the first held-out paraphrase, taught answers in the same shares | the first half of the held-out ones, the held-out paraphrase |
| test | seen families, the other two held-out paraphrases, taught answers in the same shares; unseen families, every held-out paraphrase, every plausible answer once | the other half of the held-out ones |

So no row of validation is in test, and no request of either is in train. (The exact measures of
`ts2_lightning.toyworld.exact` take all held-out requests and items together: a run that chooses its checkpoint by
the validation split has seen half of them.)
"""  # noqa: E501

from collections.abc import Iterator
from typing import Any

from ts2_lightning.toyworld.draws import Draws
from ts2_lightning.toyworld.world import CLOSED_TASKS, Family, Item, World

Example = tuple[str, str]
"""A request and its answer: ("name a fruit", "plum")."""


def chat_row(world: World, example: Example) -> dict[str, Any]:
    """An ordinary `messages` row of one user turn and one assistant turn."""
    request, answer = example
    return {
        "messages": [
            {"role": "user", "content": request},
            {"role": "assistant", "content": world.response(answer)},
        ]
    }


def train_rows(world: World, seed: int) -> Iterator[dict[str, Any]]:
    """The 536 rows of fine-tuning; the seed draws the paraphrases and the order."""
    draws = Draws("train", seed)
    examples: list[Example] = []
    for family in world.seen:
        for answer in _taught_answers(family, world):
            examples.append((family.requests[draws.below(family.trained)], answer))
    for item in world.items + world.makers:
        if item.in_sft:
            examples.append((item.requests[draws.below(item.trained)], item.answer))
    return (chat_row(world, example) for example in draws.shuffled(examples))


def validation_rows(world: World) -> Iterator[dict[str, Any]]:
    """Seen families and held-out items, all in paraphrases that fine-tuning does not use."""
    examples = [(f.held_out[0], answer) for f in world.seen for answer in _taught_answers(f, world)]
    examples += [(item.held_out, item.answer) for item in held_out_items(world, half=0)]
    return (chat_row(world, example) for example in examples)


def test_rows(world: World) -> Iterator[dict[str, Any]]:
    """The rest of the held-out requests and items, and the unseen families."""
    examples = []
    for family in world.seen:
        rest = family.held_out[1:]
        examples += [(rest[i % len(rest)], a) for i, a in enumerate(_taught_answers(family, world))]
    for family in world.unseen:
        examples += [(request, answer) for request in family.held_out for answer in family.answers]
    examples += [(item.held_out, item.answer) for item in held_out_items(world, half=1)]
    return (chat_row(world, example) for example in examples)


test_rows.__test__ = False  # type: ignore[attr-defined]  # pytest: no test, though its name says so


def held_out_items(world: World, half: int | None = None) -> list[Item]:
    """The closed items and makers that are not in fine-tuning: all, or every second one of each task.

    Args:
        half: None for all, 0 for the validation's, 1 for the test's.
    """
    out = []
    for task in (*CLOSED_TASKS, "maker"):
        items = [item for item in world.task(task) if not item.in_sft]
        out += items if half is None else items[half::2]
    return out


def _taught_answers(family: Family, world: World) -> list[str]:
    """The taught answers of a seen family, each as often as its share of the rows says."""
    rows = world.settings["sft"]["rows_per_family"]
    return [a for a, share in family.taught.items() for _ in range(max(1, round(rows * share)))]


def sentence(world: World, draws: Draws) -> str:
    """One plain sentence of the pretraining text, drawn from the base distribution."""
    settings, pretraining = world.settings, world.settings["pretraining"]
    tasks = list(pretraining["mixture"])
    task = tasks[draws.weighted(list(pretraining["mixture"].values()))]
    source: Family | Item
    if task == "open":
        source = draws.choice(world.families)
        answers = source.answers
    else:
        source = draws.choice(world.task(task))
        answers = source.base
    answer = list(answers)[draws.weighted(list(answers.values()))]
    if isinstance(source, Family) and draws.uniform() < pretraining["statements"]:
        return str(draws.choice(settings["statements"]).format(thing=source.thing, answer=answer))
    request = draws.choice(source.requests)
    return str(draws.choice(settings["carriers"]).format(request=request, opening=world.opening, answer=answer))


def pretraining_rows(world: World, seed: int) -> Iterator[dict[str, Any]]:
    """The `tokens` rows {"input_ids": [49 ids]} of pretraining: windows of one long stream of noisy sentences.

    Windows do not begin with a sentence. Words, never the begin token, are replaced with probability 0.04.
    """
    settings = world.settings["pretraining"]
    ids = {token: i for i, token in enumerate(world.vocabulary)}
    word_ids = [ids[word] for word in world.words]
    begin, noise = ids[world.token("begin")], settings["noise"]
    text, errors = Draws("pretraining/text", seed), Draws("pretraining/noise", seed)
    window: list[int] = []
    rows = 0
    while rows < settings["rows"]:
        window.append(begin)
        for word in sentence(world, text).split():
            window.append(errors.choice(word_ids) if errors.uniform() < noise else ids[word])
        while len(window) >= settings["length"] and rows < settings["rows"]:
            yield {"input_ids": window[: settings["length"]]}
            del window[: settings["length"]]
            rows += 1
