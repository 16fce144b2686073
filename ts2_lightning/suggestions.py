"""The nearest right name for a wrong one."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that the user probably meant, or None.

    A name whose last part is exactly the word comes first (`alpha` -> `model.loss.alpha`), then the closest
    spelling of the whole, then the closest spelling of the last part alone.

    >>> nearest("data.trian", ["data.train", "data.test"])
    'data.train'
    >>> nearest("max_epochs", ["trainer.max_epochs", "trainer.min_epochs"])
    'trainer.max_epochs'
    """
    names = list(dict.fromkeys(names))
    same_leaf = [name for name in names if name.rpartition(".")[2] == word]
    if same_leaf:
        return min(same_leaf, key=len)
    close = get_close_matches(word, names, n=1, cutoff=0.65)
    if close:
        return close[0]
    by_lower = {name.lower(): name for name in reversed(names)}
    close = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.7)
    if close:
        return by_lower[close[0]]
    leaves = {name.rpartition(".")[2]: name for name in reversed(names)}
    close = get_close_matches(word.rpartition(".")[2], leaves, n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """`"; did you mean NAME?"`, or nothing when no name is near."""
    name = nearest(word, names)
    return f"; did you mean {prefix}{name}?" if name else ""
