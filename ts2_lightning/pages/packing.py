"""Texts that lie in a page compressed, which its scripts unpack: `unpack` in `assets/page.js`."""

import base64
import gzip

LARGE = 65_536
"""Characters from which on numbers and tables lie in a page compressed."""


def packed(text: str) -> str:
    """A text as gzip in base 64. Equal texts are equal ones.

    Example:
        >>> gzip.decompress(base64.b64decode(packed("0.5, 0.25"))).decode()
        '0.5, 0.25'
    """
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
