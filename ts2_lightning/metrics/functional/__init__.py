"""The numbers behind the diagnostics as pure functions, usable by themselves."""

from ts2_lightning.metrics.functional.embeddings import (
    PAPERS_EMBEDDER,
    mean_pairwise_distance,
    sent_bert_diversity,
    sentence_embedder,
)
from ts2_lightning.metrics.functional.sizes import count_sizes, count_sizes_of_rows, quantiles_of_counts
from ts2_lightning.metrics.functional.text import distinct_n, nltk_words, self_bleu, words
from ts2_lightning.metrics.functional.tokens import (
    gold_in_support,
    gold_probability,
    gold_rank,
    mean_selected_probability,
    support_size,
    tail_mass,
    token_entropy,
    token_statistics,
    top_probabilities,
    zero_gradient,
)
from ts2_lightning.metrics.functional.tspd import check_tspd, head_and_tail, tspd

__all__ = [
    "PAPERS_EMBEDDER",
    "check_tspd",
    "count_sizes",
    "count_sizes_of_rows",
    "distinct_n",
    "gold_in_support",
    "gold_probability",
    "gold_rank",
    "head_and_tail",
    "mean_pairwise_distance",
    "mean_selected_probability",
    "nltk_words",
    "quantiles_of_counts",
    "self_bleu",
    "sent_bert_diversity",
    "sentence_embedder",
    "support_size",
    "tail_mass",
    "token_entropy",
    "token_statistics",
    "top_probabilities",
    "tspd",
    "words",
    "zero_gradient",
]
