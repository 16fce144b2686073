"""The torchmetrics classes: exact over pieces and ranks, against plain formulas over all tokens at once."""

import json
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from plain import has_tspd, of_all, softmax
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from tests.metrics.ranks import OF_RANK, SAMPLES, batches, lengths, of_texts, of_tokens
from tests.support.ranks import launch
from ts2_lightning import metrics
from ts2_lightning.metrics import functional as f
from ts2_lightning.metrics.means import ExactMean
from ts2_lightning.types import TOKEN_STATISTICS, UserError


def expected_of_tokens(parts: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """What `of_tokens` is to give, from all supervised tokens in one heap."""
    rows = torch.cat([logits[labels != -100] for logits, labels in parts])
    golds = torch.cat([labels[labels != -100] for _, labels in parts])
    heap = of_all(rows, golds)
    mean = {name: values.mean().item() for name, values in heap.items()}
    sizes = heap["support_size"].numpy()

    def tspd(m: int, eps_head: float, eps_tail: float) -> float:
        return float(np.mean([has_few(z, int(y), m, eps_head, eps_tail) for z, y in zip(rows, golds, strict=True)]))

    selected = [
        of_all(z[y != -100], y[y != -100])["gold_probability"].mean().item()
        for logits, labels in parts
        for z, y in zip(logits, labels, strict=True)
        if (y != -100).any()
    ]
    same = ("support_size", "tail_mass", "entropy", "gold_probability", "gold_rank", "gold_in_support", "zero_gradient")
    return {
        **{name: mean[name] for name in same},
        "support_size_at_3": of_all(rows, golds, 3.0)["support_size"].mean().item(),
        # A collection puts the metric's name before all keys as soon as two metrics share one.
        "support_sizes_counts": np.bincount(sizes.astype(int), minlength=22).tolist(),
        "support_sizes_quantile_0.5": np.quantile(sizes, 0.5, method="inverted_cdf"),
        "support_sizes_quantile_0.9": np.quantile(sizes, 0.9, method="inverted_cdf"),
        "top": [mean["top1"], mean["top2"], mean["top3"]],
        "tspd_2": tspd(2, 0.1, 0.4),
        "tspd_4": tspd(4, 0.02, 0.3),
        **{f"statistics_{name}": mean[name] for name in TOKEN_STATISTICS},
        "selected": float(np.mean(selected)),
    }


def has_few(z: Tensor, y: int, m: int, eps_head: float, eps_tail: float) -> bool:
    """TSPD of a row without ties: only its largest probabilities can be in S, the others are as good as one token."""
    p = softmax(z)
    order = sorted(set(range(len(p))) - {y}, key=lambda j: -p[j])
    rest = sum(p[j] for j in order[m + 1 :])
    few = [p[y], *(p[j] for j in order[: m + 1])]
    return has_tspd(few, 0, m, eps_head, eps_tail - rest) if rest <= eps_tail else False


def expected_of_texts(samples: list[list[str]]) -> dict[str, float]:
    return {
        "distinct": float(np.mean([f.distinct_n(texts, n) for texts in samples for n in (1, 2, 3)])),
        "pooled": float(np.mean([f.distinct_n(texts, n, pooled=True) for texts in samples for n in (1, 2, 3)])),
        "self_bleu": float(np.mean([f.self_bleu(texts) for texts in samples])),
        "first_only": float(np.mean([f.self_bleu(texts, first_only=True) for texts in samples])),
        "sent_bert": float(np.mean([f.sent_bert_diversity(texts, lengths) for texts in samples])),
    }


def check(actual: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        assert actual[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name


def numbers(found: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.tolist() for name, value in found.items()}


def test_two_ranks() -> None:
    """Rank 0 has eight responses, rank 1 has two; one metric has seen tokens on rank 1 only."""
    found = json.loads(launch("tests.metrics.ranks").splitlines()[-1])
    entropy_of_rank_1 = found.pop("entropy_of_rank_1")
    check(found, expected_of_tokens(batches()) | expected_of_texts(SAMPLES))
    check({"": entropy_of_rank_1}, {"": expected_of_tokens(batches()[:1])["entropy"]})
    alone = [expected_of_tokens([batches()[i] for i in of_rank])["entropy"] for of_rank in OF_RANK]
    assert found["entropy"] != pytest.approx(sum(alone) / 2, rel=1e-3)  # a mean of means would show


def test_forward_gives_the_batch_and_compute_gives_all() -> None:
    tokens, texts = of_tokens(), of_texts()
    for (logits, labels), samples in zip(batches(), SAMPLES, strict=True):
        check(numbers(tokens(logits, labels)), expected_of_tokens([(logits, labels)]))
        check(numbers(texts([samples])), expected_of_texts([samples]))
    check(numbers(tokens.compute()), expected_of_tokens(batches()))
    check(numbers(texts.compute()), expected_of_texts(SAMPLES))
    tokens.reset()
    tokens.update(*batches()[1])
    check(numbers(tokens.compute()), expected_of_tokens(batches()[1:2]))


def test_a_collection_never_takes_two_metrics_for_the_same() -> None:
    """It merges those with equal states after the first batch; here all shares are 1 in the first and differ later."""
    share = {
        "support": metrics.GoldInSupport(),
        "support_at_9": metrics.GoldInSupport(logit_scale=9.0),
        "stopped": metrics.ZeroGradient(),
        "tspd": metrics.TSPD(2, 0.01, 0.9),
        "tspd_of_more": metrics.TSPD(3, 0.01, 0.9),
        "rank": metrics.GoldRank(),
    }
    collection = MetricCollection(share)
    first = (torch.tensor([[3.0, 0.0, -0.5]]), torch.tensor([0]))
    second = (torch.tensor([[3.0, 2.5, -4.0]]), torch.tensor([1]))
    assert set(numbers(collection(*first)).values()) == {1.0}
    collection.update(*second)
    wanted = {"support": 1.0, "support_at_9": 0.5, "stopped": 0.5, "tspd": 1.0, "tspd_of_more": 0.5, "rank": 1.5}
    assert numbers(collection.compute()) == wanted
    pair = MetricCollection({"own": metrics.Distinct([1]), "pooled": metrics.Distinct([1], pooled=True)})
    pair.update([["a", "b"]])
    pair.update([["a", "a"]])
    assert numbers(pair.compute()) == {"own": 1.0, "pooled": 0.75}


def test_states_add_up_without_losing_digits() -> None:
    """Each token adds a hair to a large sum: in float32 it would stand still."""

    class Mean(ExactMean):
        def update(self, values: Tensor) -> None:
            self._add(values)

    metric = Mean("values")
    metric.update(torch.tensor([2.0**26]))
    for _ in range(1000):
        metric.update(torch.ones(1))
    assert metric.compute().item() == (2**26 + 1000) / 1001


@pytest.mark.parametrize("name", list(of_tokens().keys()) + list(of_texts().keys()))
def test_pickle_and_state_dict(name: str) -> None:
    def fresh() -> Metric:
        return (of_tokens() if name in of_tokens() else of_texts())[name]

    def batch(i: int) -> tuple[Any, ...]:
        return batches()[i] if name in of_tokens() else ([SAMPLES[i]],)

    metric = fresh()
    metric.update(*batch(0))
    twin = pickle.loads(pickle.dumps(metric))
    loaded = fresh()
    metric.persistent(True)
    loaded.persistent(True)
    loaded.load_state_dict(metric.state_dict())
    loaded._update_count = 1
    for each in (metric, twin, loaded):
        each.update(*batch(3))
    assert str(metric.compute()) == str(twin.compute()) == str(loaded.compute())


def test_states_move_with_the_module() -> None:
    """To another device (here one without storage), while `half` and `float` leave the sums in float64."""
    for metric in [*of_tokens().values(), *of_texts().values()]:
        moved = metric.half().to("meta")
        states = [getattr(moved, name) for name in moved._defaults]
        assert {state.device.type for state in states} == {"meta"}
        assert {state.dtype for state in states} <= {torch.float64, torch.int64}


def test_without_float64() -> None:
    metric = metrics.TokenEntropy().set_dtype(torch.float32)
    metric.update(*batches()[0])
    assert metric.compute().dtype == torch.float32
    assert metric.compute().item() == pytest.approx(expected_of_tokens(batches()[:1])["entropy"], rel=1e-5)


def test_no_labels_and_single_tokens() -> None:
    logits, _ = batches()[0]
    wanted = of_all(logits, torch.zeros(logits.shape[:-1], dtype=torch.long))
    metric = metrics.TopProbabilities()
    metric.update(logits)
    metric.update(logits[0, 0])
    top1 = torch.cat([wanted["top1"].reshape(-1), wanted["top1"][0, :1]])
    assert metric.compute()[0].item() == pytest.approx(top1.mean().item(), rel=1e-5)
    one = metrics.GoldProbability()
    one.update(logits[0, 0], torch.tensor(0))
    one.update(logits[0, 0], torch.tensor(-100))
    assert one.compute().item() == pytest.approx(wanted["gold_probability"][0, 0].item(), rel=1e-5)
    with pytest.raises(UserError, match="labels: expected integers"):
        metrics.GoldRank().update(logits)


def test_nothing_was_seen() -> None:
    tokens = of_tokens()
    tokens.update(torch.zeros(2, 3, 40), torch.full((2, 3), -100))
    for name, value in tokens.compute().items():
        assert value.sum() == 0 if name.endswith("counts") else value.isnan().all()
    texts = of_texts()
    texts.update([])
    assert all(value.isnan() for value in texts.compute().values())


def test_bad_logits_are_seen() -> None:
    """A NaN makes the mean NaN: it is not left out as if the token were not supervised."""
    logits, labels = batches()[0]
    logits[0, 0, 0] = torch.nan
    metric = metrics.TailMass()
    metric.update(logits, labels.masked_fill(labels == -100, 0))
    assert metric.compute().isnan()


def test_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens, texts = of_tokens(), of_texts()
        tokens(*batches()[0])
        texts([SAMPLES[0]])
        tokens.compute()
        texts.compute()


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="Distinct: n must be one or more orders"):
        metrics.Distinct([])
    with pytest.raises(UserError, match=r"SelfBLEU.update\(samples\): expected a list of samples for each prompt"):
        metrics.SelfBLEU().update(["a b", "a c"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="needs 2 or more samples"):
        metrics.SelfBLEU().update([["a b"]])


def test_responses_without_a_token_are_left_out() -> None:
    logits, labels = batches()[0]
    labels[1] = -100
    metric = metrics.MeanSelectedProbability()
    metric.update(logits, labels)
    p = of_all(logits, labels)["gold_probability"]
    wanted = (p[0].nanmean() + p[2].nanmean()) / 2
    assert metric.compute().item() == pytest.approx(wanted.item(), rel=1e-5)
