"""What an engine is told when it is asked how much memory it needs.

Shapes: N supervised tokens, H the width of the model, K the vocabulary.
"""

from dataclasses import dataclass

FLOAT = 4
"""Bytes of an element of logits and of sums of gradients, which are float32."""


@dataclass(frozen=True)
class LossSizes:
    """The sizes that the memory of a loss engine follows from.

    Attributes:
        tokens: Number N of supervised tokens of a micro-batch.
        width: Width H of the model.
        vocabulary: Size K of the vocabulary.
        hidden_itemsize: Bytes of an element of the hidden states.
        head_itemsize: Bytes of an element of the head's matrix.
        factor_itemsize: Bytes of an element of the factors of the head's products, which autocast may round.
        head_trained: Whether the head's matrix gets a gradient.
        head_plain: Whether the head is a matrix product and nothing else.
        block: Bytes that the loss and the statistics allocate on a block of rows.
        device: Type of the device that computes: `cuda` or `cpu`, which takes smaller chunks.
    """

    tokens: int
    width: int
    vocabulary: int
    hidden_itemsize: int
    head_itemsize: int
    factor_itemsize: int
    head_trained: bool
    head_plain: bool
    block: int
    device: str = "cuda"

    def copies(self, factor_itemsize: int) -> int:
        """Bytes of hidden states [N, H] and head [K, H] in the dtype of the factors, where that is another."""
        tokens = self.tokens * (self.hidden_itemsize != factor_itemsize)
        rows = self.vocabulary * (self.head_itemsize != factor_itemsize)
        return factor_itemsize * self.width * (tokens + rows)
