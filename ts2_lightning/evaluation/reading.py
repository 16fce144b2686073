"""How a model reads texts that another model wrote."""

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel

from ts2_lightning.evaluation.loading import supervised_logits
from ts2_lightning.types import Batch


def response_batch(prompt: Sequence[int], response: Sequence[int]) -> Batch:
    """A batch of one row, whose supervised tokens are those of a response.

    Args:
        prompt: token ids that the response follows, at least one.
        response: T token ids.

    Example:
        >>> response_batch((5, 6), (7, 8))["supervised"]
        tensor([1, 2])
    """
    ids = torch.tensor([[*prompt, *response]])
    places = torch.arange(len(prompt), ids.shape[1])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "supervised": places - 1,
        "labels": ids[0, places],
    }


def response_cross_entropy(network: PreTrainedModel, responses: Iterable[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Cross-entropy of responses under a model that reads them, as a mean over all of their tokens.

    Args:
        network: Model in evaluation mode.
        responses: Token ids of a prompt, at least one, and of a response to it, for each response.

    Returns:
        Nats a token; nan if there are no tokens.

    Raises:
        UserError: A text is longer than the model has positions for, or has a token that it has not.
    """
    nats, tokens = 0.0, 0
    for prompt, response in responses:
        if not len(response):
            continue
        batch = response_batch(prompt, response)
        for here, logits in supervised_logits(network, batch):
            labels = batch["labels"][here].to(logits.device)
            nats += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += len(response)
    return nats / tokens if tokens else float("nan")
