"""What values are, in half a sentence, for readers of a report who have not measured them."""

_DECODERS = {"t1": "T 1", "papers": "T 0.6, top-k 50, top-p 0.9"}
_IF_ANY = ", defined if every question has a plausible answer"
_OF_DECODER = {
    "validity": "share of valid answers",
    "distinct": "distinct valid answers expected in 32 samples",
    "coverage": "the same as a share of all valid answers",
    "format": f"probability of the taught form around the model's own answers{_IF_ANY}",
}
_TOYWORLD = {
    "distinct_matched": "distinct valid answers expected in 32 samples; at the highest T at which V is 0.95",
    "temperature_matched": "the highest T at which V is 0.95",
    "end_probability": f"probability that an answer ends where it should; T 1{_IF_ANY}",
    "outside_plausible": "mass of the first token of the answer outside of the plausible ones",
    "tail_mass": "mass of the first token of the answer outside of its sparsemax support",
    "support_size": "sparsemax support of the first token of the answer, in tokens",
    "entropy": "entropy of the first token of the answer, in nats",
    "distinct_base": "distinct valid answers expected in 32 samples of the world's own distribution",
    "accuracy": "greedy accuracy on held-out questions that have one answer",
    "maker/pass_1": "probability of the right answer",
    "maker/pass_32": "probability that one of 32 samples is right",
}
_OTHERS = {
    "validation/cross_entropy": "a supervised token of the validation rows, in nats",
    "validation/entropy": "of the model's distribution at the supervised tokens of the validation rows, in nats",
    "diversity/ngram": "100 times the share of distinct n-grams within a response, mean of n = 1, 2, 3",
    "diversity/self_bleu": "of the samples of a prompt",
    "diversity/sentence_bert": "100 times the Sent-BERT diversity of the samples of a prompt",
    "probes/tail/tail_mass": "softmax mass outside of the sparsemax support, mean over the validation rows",
    "probes/tspd/share": "share of tokens with two candidates of at least 0.1 each and at most 0.2 on all others",
    "probes/macro/mean": "mean probability of the tokens of a sampled response",
    "probes/micro/implausible_mass": "mass of the first token of the answer outside of the plausible ones",
    "cost/seconds": "of training; it follows the machine and its load",
    "cost/supervised_tokens_per_second": "median over the logged steps; it follows the machine and its load",
    "cost/peak_memory_gb": "the most that the process had",
}


def meaning(name: str) -> str:
    """What a value is; empty where its name says it.

    Example:
        >>> meaning("toyworld/seen/distinct_t1_k2")
        'distinct valid answers expected in 32 samples; T 1; questions with 2 taught answers'
        >>> meaning("toyworld/unseen/entropy")
        'entropy of the first token of the answer, in nats; questions of which none was taught'
        >>> meaning("mine/own")
        ''
    """
    measure, _, inner = name.partition("/")
    if measure != "toyworld":
        return _OTHERS.get(name, "")
    split, _, leaf = inner.partition("/") if inner.startswith(("seen/", "unseen/")) else ("", "", inner)
    unseen = "; questions of which none was taught" if split == "unseen" else ""
    if leaf in _TOYWORLD:
        return _TOYWORLD[leaf] + unseen
    leaf, taught, answers = leaf.partition("_k")
    what, _, decoder = leaf.rpartition("_")
    found = _OF_DECODER.get(what) or _TOYWORLD.get(what)
    if found is None or decoder not in _DECODERS:
        return ""
    asked = f"; questions with {answers} taught answer{'' if answers == '1' else 's'}" if taught else unseen
    return f"{found}; {_DECODERS[decoder]}{asked}"
