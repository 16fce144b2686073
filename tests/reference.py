"""Plain formulas of the objectives, for autograd in float64.

Independent of the package: they are written from the papers with masks over the whole vocabulary, and the projections
are those of the `entmax` package. `.detach()` stands where a paper holds a factor constant.
"""

import itertools
from collections.abc import Callable

import entmax
import torch
from torch import Tensor

from ts2_lightning.losses import (
    CrossEntropyLoss,
    EntmaxLoss,
    EntropyBonusLoss,
    ExponentialInflationLoss,
    FenchelYoungPlusLoss,
    FocalLoss,
    GEMLoss,
    LabelSmoothingLoss,
    LambdaPRLoss,
    LogarithmicInflationLoss,
    PowerInflationLoss,
    ReferenceAnchored,
    ReferenceSuppression,
    SparsemaxLoss,
    SuppressionOnlyLoss,
    TOFULoss,
    TokenLoss,
    TS2Loss,
    ValueLoss,
)
from ts2_lightning.types import ReferenceOutput

Formula = Callable[[Tensor, Tensor], Tensor]

TURNS = (3, 5, 1, 8, 2, 40)
"""Lengths of the assistant turns that the tests' tokens are in, over and over."""


def turn_positions(n: int) -> tuple[Tensor, Tensor]:
    """1-based positions and lengths, each [n] int64, of n tokens in turns of `TURNS`; the last turn may be cut."""
    places = ((position, length) for length in itertools.cycle(TURNS) for position in range(1, length + 1))
    pairs = torch.tensor(list(itertools.islice(places, n)), dtype=torch.long).view(n, 2)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)) of each of n rows of logits."""
    log_r = reference.log_softmax(-1)
    return (log_r.exp() * (log_r - logits.log_softmax(-1))).sum(-1)


def reverse_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(reference)) of each of n rows of logits."""
    return divergence(logits, reference)


def nucleus(logits: Tensor, p: float) -> Tensor:
    """[n, K] bool, for each row the likeliest tokens until they have probability p, and those that tie with the last.

    Token by token, in Python's own floats.
    """
    mask = torch.zeros_like(logits, dtype=torch.bool)
    for row, probabilities in enumerate(logits.double().softmax(-1).tolist()):
        total = least = 0.0
        for probability in sorted(probabilities, reverse=True):
            if total >= p:
                break
            total, least = total + probability, probability
        mask[row] = torch.tensor([probability >= least for probability in probabilities])
    return mask


def reference_output(n: int, k: int, dtype: torch.dtype = torch.float64) -> ReferenceOutput:
    """A reference model's hidden states of n tokens and its head; few bits, so that every dtype has the same ones.

    The logits are multiples of 1/32, and less than that apart where they would tie: of no set is it left open what is
    in it.
    """
    tokens, columns = torch.arange(n)[:, None], torch.arange(k)[:, None]
    states = torch.cat([((tokens * 7 + torch.arange(3) * 5) % 9 - 4) / 4, torch.ones(n, 2)], -1)
    ties = columns % 128 / 2**12, columns // 128 / 2**19
    head = torch.nn.Linear(5, k, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.cat([((columns * 5 + torch.arange(3) * 11) % 17 - 8) / 8, *ties], -1))
    return ReferenceOutput(states.to(dtype), head.requires_grad_(False))


def reference_logits(n: int, k: int) -> Tensor:
    """Its logits [n, k] in float64."""
    states, head = reference_output(n, k).hidden_states, reference_output(n, k).head
    return head(states)


def anchored(formula: Formula, weight: float, kl: Formula = divergence) -> Formula:
    """An objective plus the divergence from the reference above, or another one."""
    return lambda z, y: formula(z, y) + weight * kl(reference_logits(*z.shape).to(z.dtype), z)


def suppressed_by_reference(
    formula: Formula, alpha: float, top_p: float | None = None, top_k: int | None = None
) -> Formula:
    """An objective plus the suppression of what the reference above finds implausible."""

    def total(logits: Tensor, labels: Tensor) -> Tensor:
        plausible = reference_logits(*logits.shape)
        mask = support_mask(plausible, labels, top_k)
        if top_p is not None:
            mask = nucleus(plausible, top_p).scatter(-1, labels[:, None], True)
        return formula(logits, labels) + alpha * suppression(logits, mask)

    return total


# -- projections and supports


def entmax_probabilities(logits: Tensor, alpha: float) -> Tensor:
    """[n, K] by a full sort or by bisection. Shifted: entmax's own threshold loses digits at large logits."""
    shifted = logits - logits.amax(-1, keepdim=True)
    if alpha == 2:
        return entmax.sparsemax(shifted, dim=-1)
    if alpha == 1.5:
        return entmax.entmax15(shifted, dim=-1)
    return entmax.entmax_bisect(shifted, alpha=alpha, dim=-1, n_iter=60)


def sparsemax(logits: Tensor) -> Tensor:
    """[n, K]."""
    return entmax_probabilities(logits, 2.0)


def support_mask(logits: Tensor, labels: Tensor, top_k: int | None, alpha: float = 2.0) -> Tensor:
    """[n, K] bool, the kept tokens (the support of alpha-entmax, or the k largest logits) and the gold one."""
    if top_k is None:
        mask = entmax_probabilities(logits.detach(), alpha) > 0
    else:
        columns = logits.detach().topk(min(top_k, logits.shape[-1])).indices
        mask = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, columns, True)
    return mask.scatter(-1, labels[:, None], True)


def at_gold(matrix: Tensor, labels: Tensor) -> Tensor:
    """[n] the gold column of [n, K]."""
    return matrix.gather(-1, labels[:, None])[:, 0]


# -- cross-entropy and what weighs it


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[n] -log p_y."""
    return -at_gold(logits.log_softmax(-1), labels)


def label_smoothing(epsilon: float) -> Formula:
    """Cross-entropy to the target (1 - epsilon) e_y + epsilon / K."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        target = torch.full_like(logits, epsilon / logits.shape[-1])
        target = target.scatter_add(-1, labels[:, None], torch.full_like(target[:, :1], 1 - epsilon))
        return -(target * logits.log_softmax(-1)).sum(-1)

    return formula


def entropy_bonus(gamma: float) -> Formula:
    """GEM, equation 15: -log p_y - gamma H(p)."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        return -at_gold(log_p, labels) + gamma * (log_p.exp() * log_p).sum(-1)

    return formula


def gem(beta: float, h: str = "linear") -> Formula:
    """GEM, equation 3 with q from equation 6, and its public code's weights for h = log sigmoid."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        q = (logits / beta).softmax(-1)
        w = torch.ones_like(q)
        if h == "logsigmoid":
            w = torch.sigmoid(0.01 * (logits - at_gold(logits, labels)[:, None]))
        return (q.detach() * w.detach() * (log_p - at_gold(log_p, labels)[:, None])).sum(-1)

    return formula


def focal(gamma: float) -> Formula:
    """TOFU, definition 2.3: -(1 - p_y)^gamma log p_y."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        p = at_gold(logits.softmax(-1), labels)
        return -((1 - p) ** gamma) * p.log()

    return formula


def tofu(gamma: float, beta: float) -> Formula:
    """TOFU, definition 3.4, with g of proposition 3.2."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        p = at_gold(logits.softmax(-1), labels)
        g = (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * p.log()
        return -g.detach() * beta * at_gold((logits / beta).log_softmax(-1), labels)

    return formula


def lambda_pr(lambda_: float, alpha: float) -> Formula:
    """TOFU, definition 2.2, for tokens in the turns of `turn_positions`."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        positions, lengths = turn_positions(len(labels))
        p = at_gold(logits.softmax(-1), labels).detach()
        root = lambda_ ** (1 / lengths.double())
        delta = alpha * root / (1 - (1 - alpha) * root)
        w = lambda_ ** ((positions - 1) / lengths.double()) * (p <= delta) * p / (alpha + (1 - alpha) * p)
        return w * cross_entropy(logits, labels)

    return formula


# -- Fenchel-Young losses and suppression


def sparsemax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[n] -z_y + 1/2 sum_S (z_j^2 - tau^2) + 1/2, by its definition; the support is held constant."""
    support = sparsemax(logits.detach()) > 0
    size = support.sum(-1)
    tau = ((logits * support).sum(-1) - 1) / size
    squares = (logits.square() * support).sum(-1) - size * tau.square()
    return -at_gold(logits, labels) + squares / 2 + 0.5


def entmax_loss(alpha: float) -> Formula:
    """Omega*(z) + Omega(e_y) - z_y, Omega(p) = (sum p^alpha - 1) / (alpha (alpha - 1)) the negative Tsallis entropy.

    Omega*(z) = max_p <p, z> - Omega(p), at whose maximum p may be held constant (Danskin's theorem).
    """

    def omega(p: Tensor) -> Tensor:
        return ((p**alpha).sum(-1) - 1) / (alpha * (alpha - 1))

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        p = entmax_probabilities(logits.detach(), alpha)
        conjugate = (p * logits).sum(-1) - omega(p)
        gold = torch.nn.functional.one_hot(labels, logits.shape[-1]).to(p.dtype)
        return conjugate + omega(gold) - at_gold(logits, labels)

    return formula


def suppression(logits: Tensor, mask: Tensor, cap: float | None = None) -> Tensor:
    """[n] -log of the softmax mass in the mask [n, K], which is held constant; with the clamp of TS2's public code."""
    if cap is None:
        return logits.logsumexp(-1) - logits.masked_fill(~mask, -torch.inf).logsumexp(-1)
    tail = (logits.softmax(-1) * ~mask).sum(-1)
    return -torch.log(1 - tail.clamp(max=cap))


def plus(
    base: Formula,
    base_alpha: float,
    alpha: float,
    logit_scale: float = 1.0,
    top_k: int | None = None,
    adaptive: bool = False,
    cap: float | None = None,
) -> Formula:
    """base(c z) + alpha suppression at c z, S the support of base_alpha-entmax(c z), and the options of TS2's code."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        z = logits * logit_scale
        gold = at_gold(entmax_probabilities(z.detach(), base_alpha), labels)
        weight = alpha * (1 - gold) if adaptive else alpha
        return base(z, labels) + weight * suppression(z, support_mask(z, labels, top_k, base_alpha), cap)

    return formula


def ts2(
    alpha: float, logit_scale: float = 1.0, top_k: int | None = None, adaptive: bool = False, cap: float | None = None
) -> Formula:
    """Equation 4 of TS2 with the constant 1/2, and the options of its public code."""
    return plus(sparsemax_loss, 2.0, alpha, logit_scale, top_k, adaptive, cap)


def entmax_plus(base_alpha: float, alpha: float, **options: float | None) -> Formula:
    """Equation 4 of TS2 with alpha-entmax in place of sparsemax."""
    return plus(entmax_loss(base_alpha), base_alpha, alpha, **options)


def suppression_only(alpha: float, **options: float | None) -> Formula:
    """TS2, figure 4: cross-entropy and the suppression of the sparsemax support."""
    return plus(cross_entropy, 2.0, alpha, **options)


# -- inflation


def inflation(f: Callable[[Tensor], Tensor]) -> Formula:
    """TS2, appendix E: -log of f(p_y) / sum_j f(p_j)."""

    def formula(logits: Tensor, labels: Tensor) -> Tensor:
        inflated = f(logits.softmax(-1))
        return -torch.log(at_gold(inflated, labels) / inflated.sum(-1))

    return formula


def power(alpha: float) -> Formula:
    """f(x) = x^alpha."""
    return inflation(lambda x: x**alpha)


def exponential(gamma: float) -> Formula:
    """f(x) = exp(gamma x)."""
    return inflation(lambda x: torch.exp(gamma * x))


def logarithmic(delta: float) -> Formula:
    """f(x) = log(x + delta) - log(delta), as the logarithm of a ratio: the difference loses the digits of a small x."""
    return inflation(lambda x: torch.log1p(x / delta))


class PlainFocal(ValueLoss):
    """A loss that has only a value, as a user would write it."""

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        return -((1 - log_p.exp()) ** 2) * log_p


OBJECTIVES: dict[str, tuple[TokenLoss, Formula]] = {
    "cross_entropy": (CrossEntropyLoss(), cross_entropy),
    "label_smoothing": (LabelSmoothingLoss(), label_smoothing(0.2)),
    "label_smoothing_strong": (LabelSmoothingLoss(epsilon=0.9), label_smoothing(0.9)),
    "entropy_bonus": (EntropyBonusLoss(), entropy_bonus(0.1)),
    "entropy_bonus_strong": (EntropyBonusLoss(gamma=1.5), entropy_bonus(1.5)),
    "gem": (GEMLoss(), gem(0.7)),
    "gem_cold": (GEMLoss(beta=0.3), gem(0.3)),
    "gem_at_1": (GEMLoss(beta=1.0), gem(1.0)),
    "gem_logsigmoid": (GEMLoss(h="logsigmoid"), gem(0.7, "logsigmoid")),
    "gem_logsigmoid_cold": (GEMLoss(beta=0.3, h="logsigmoid"), gem(0.3, "logsigmoid")),
    "focal": (FocalLoss(), focal(3)),
    "focal_at_0": (FocalLoss(gamma=0), focal(0)),
    "focal_below_1": (FocalLoss(gamma=0.5), focal(0.5)),
    "focal_at_1": (FocalLoss(gamma=1), focal(1)),
    "tofu": (TOFULoss(), tofu(3, 0.8)),
    "tofu_cold": (TOFULoss(gamma=0.5, beta=0.3), tofu(0.5, 0.3)),
    "tofu_at_1": (TOFULoss(gamma=1, beta=1), tofu(1, 1)),
    "lambda_pr": (LambdaPRLoss(), lambda_pr(0.1, 1e-5)),
    "lambda_pr_middle": (LambdaPRLoss(lambda_=0.9, alpha=0.01), lambda_pr(0.9, 0.01)),
    "lambda_pr_wide": (LambdaPRLoss(lambda_=0.05, alpha=0.5), lambda_pr(0.05, 0.5)),
    "sparsemax": (SparsemaxLoss(), sparsemax_loss),
    "entmax": (EntmaxLoss(), entmax_loss(1.5)),
    "entmax_1.25": (EntmaxLoss(alpha=1.25), entmax_loss(1.25)),
    "entmax_1.75": (EntmaxLoss(alpha=1.75), entmax_loss(1.75)),
    "entmax_2": (EntmaxLoss(alpha=2), entmax_loss(2)),
    "ts2": (TS2Loss(), ts2(0.25)),
    "ts2_sparsemax_only": (TS2Loss(alpha=0), ts2(0)),
    "ts2_strong": (TS2Loss(alpha=5), ts2(5)),
    "ts2_scaled": (TS2Loss(alpha=0.5, logit_scale=2.5), ts2(0.5, logit_scale=2.5)),
    "ts2_top_k": (TS2Loss(alpha=0.5, top_k=3), ts2(0.5, top_k=3)),
    "ts2_adaptive": (TS2Loss(alpha=0.5, adaptive=True), ts2(0.5, adaptive=True)),
    "ts2_capped": (TS2Loss(alpha=0.5, tail_mass_cap=0.6), ts2(0.5, cap=0.6)),
    "ts2_all": (
        TS2Loss(alpha=2, logit_scale=0.7, top_k=5, adaptive=True, tail_mass_cap=0.9),
        ts2(2, logit_scale=0.7, top_k=5, adaptive=True, cap=0.9),
    ),
    "entmax_plus": (FenchelYoungPlusLoss(), entmax_plus(1.5, 0.25)),
    "entmax_plus_scaled": (
        FenchelYoungPlusLoss(EntmaxLoss(1.25), alpha=0.5, logit_scale=2.5),
        entmax_plus(1.25, 0.5, logit_scale=2.5),
    ),
    "entmax_plus_top_k": (
        FenchelYoungPlusLoss(EntmaxLoss(1.75), alpha=3, logit_scale=0.7, top_k=3),
        entmax_plus(1.75, 3, logit_scale=0.7, top_k=3),
    ),
    "entmax_plus_all": (
        FenchelYoungPlusLoss(EntmaxLoss(), alpha=2, logit_scale=0.7, top_k=5, adaptive=True, tail_mass_cap=0.9),
        entmax_plus(1.5, 2, logit_scale=0.7, top_k=5, adaptive=True, cap=0.9),
    ),
    "sparsemax_plus": (FenchelYoungPlusLoss(SparsemaxLoss(), adaptive=True), ts2(0.25, adaptive=True)),
    "suppression_only": (SuppressionOnlyLoss(), suppression_only(0.25)),
    "suppression_only_scaled": (
        SuppressionOnlyLoss(alpha=2, logit_scale=2.5, tail_mass_cap=0.6),
        suppression_only(2, logit_scale=2.5, cap=0.6),
    ),
    "suppression_only_top_k": (
        SuppressionOnlyLoss(alpha=0.5, logit_scale=0.7, top_k=3),
        suppression_only(0.5, logit_scale=0.7, top_k=3),
    ),
    "power_inflation": (PowerInflationLoss(), power(2)),
    "power_inflation_below_1": (PowerInflationLoss(alpha=0.5), power(0.5)),
    "exponential_inflation": (ExponentialInflationLoss(), exponential(4)),
    "exponential_inflation_strong": (ExponentialInflationLoss(gamma=30), exponential(30)),
    "logarithmic_inflation": (LogarithmicInflationLoss(), logarithmic(0.01)),
    "logarithmic_inflation_wide": (LogarithmicInflationLoss(delta=1), logarithmic(1)),
    "value_only": (PlainFocal(), focal(2)),
}

ANCHORED: dict[str, tuple[TokenLoss, Formula]] = {
    "anchored": (ReferenceAnchored(), anchored(cross_entropy, 0.1)),
    "anchored_at_0": (ReferenceAnchored(GEMLoss(), weight=0), gem(0.7)),
    "anchored_ts2": (ReferenceAnchored(TS2Loss(), weight=2), anchored(ts2(0.25), 2)),
    "anchored_scaled": (
        ReferenceAnchored(TS2Loss(alpha=0.5, logit_scale=2.5), weight=0.5),
        anchored(ts2(0.5, logit_scale=2.5), 0.5),
    ),
    "anchored_sparsemax": (ReferenceAnchored(SparsemaxLoss(), weight=1), anchored(sparsemax_loss, 1)),
    "anchored_reverse": (
        ReferenceAnchored(weight=0.5, direction="reverse"),
        anchored(cross_entropy, 0.5, reverse_divergence),
    ),
    "anchored_reverse_ts2": (
        ReferenceAnchored(TS2Loss(alpha=0.5, logit_scale=2.5), weight=2, direction="reverse"),
        anchored(ts2(0.5, logit_scale=2.5), 2, reverse_divergence),
    ),
    "reference_suppression": (ReferenceSuppression(), suppressed_by_reference(cross_entropy, 0.25)),
    "reference_suppression_ts2": (
        ReferenceSuppression(TS2Loss(alpha=0.5, logit_scale=2.5), alpha=2),
        suppressed_by_reference(ts2(0.5, logit_scale=2.5), 2),
    ),
    "reference_suppression_top_p": (
        ReferenceSuppression(GEMLoss(), alpha=1, top_p=0.6),
        suppressed_by_reference(gem(0.7), 1, top_p=0.6),
    ),
    "reference_suppression_top_k": (
        ReferenceSuppression(SparsemaxLoss(), alpha=0.5, top_k=3),
        suppressed_by_reference(sparsemax_loss, 0.5, top_k=3),
    ),
    "suppressed_and_anchored": (
        ReferenceAnchored(ReferenceSuppression(TS2Loss(), alpha=0.5, top_p=0.9), weight=0.5, direction="reverse"),
        anchored(suppressed_by_reference(ts2(0.25), 0.5, top_p=0.9), 0.5, reverse_divergence),
    ),
}
"""Objectives that need to be told what a reference model says: here `reference_output`."""
