"""Two ranks with sharded weights: their responses end at different steps, and they run equally many forward passes."""

from typing import Any

import torch
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.ranks import fork_ranks
from ts2_lightning.generation import Decoder, GenerationSettings, Request
from ts2_lightning.generation.backends import TransformersBackend
from ts2_lightning.toyworld import build_tokenizer


def rank(number: int) -> None:
    """Each rank asks for other samples, so only what they agree on keeps them together."""
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
    forward, passes = model.forward, 0

    def met(input_ids: torch.Tensor, **inputs: Any) -> Any:
        nonlocal passes
        passes += 1
        distributed.barrier()  # as sharded weights do: a rank that runs fewer passes hangs here
        return forward(input_ids=input_ids, **inputs)

    settings = GenerationSettings("model", Decoder(), 40, tuple(range(0, len(tokenizer), 9)), seed=number)
    requests = [Request((3,) * (index + 1), index, settings) for index in range(7)]
    alone = {one.key: one.ids for one in TransformersBackend(model, tokenizer, 3).complete(requests)}
    setattr(model, "forward", met)  # noqa: B010
    made = {one.key: one.ids for one in TransformersBackend(model, tokenizer, 3, synced=True).complete(requests)}
    assert made == alone
    counts = [torch.zeros(2, dtype=torch.long) for _ in range(2)]
    distributed.all_gather(counts, torch.tensor([passes, sum(len(ids or ()) for ids in made.values())]))
    assert counts[0][0] == counts[1][0], "equally many passes"
    assert counts[0][1] != counts[1][1], "of responses of other lengths"


if __name__ == "__main__":
    fork_ranks(rank)
