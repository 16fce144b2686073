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
        reference: Whether the loss needs the logits of a reference model, which has a head of the same sizes.
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
    reference: bool = False
    device: str = "cuda"

    def copies(self, factor_itemsize: int) -> int:
        """Bytes of hidden states [N, H] and head [K, H] in the dtype of the factors, where that is another."""
        tokens = self.tokens * (self.hidden_itemsize != factor_itemsize)
        rows = self.vocabulary * (self.head_itemsize != factor_itemsize)
        return factor_itemsize * self.width * (tokens + rows)

    def reference_logits(self, rows: int) -> int:
        """Bytes of the reference's logits of some tokens at once, 4 n K, and of the factors that give them."""
        if not self.reference:
            return 0
        output = 0 if self.head_plain else self.factor_itemsize * rows * self.vocabulary
        states = self.factor_itemsize * rows * self.width * (self.hidden_itemsize != self.factor_itemsize)
        return FLOAT * rows * self.vocabulary + output + states

    @property
    def reference_head(self) -> int:
        """Bytes of the reference's head [K, H] in the dtype of the factors, where that is another."""
        needed = self.reference and self.head_plain and self.head_itemsize != self.factor_itemsize
        return self.factor_itemsize * self.vocabulary * self.width if needed else 0
