"""Pages to look at in a browser: one file each, which needs neither a server nor a network.

In come tables, curves and texts as plain values; out goes HTML. Nothing here knows of models, measures or runs.
"""

from ts2_lightning.pages.page import PAGE, Page
from ts2_lightning.pages.sections import (
    Cell,
    Chart,
    Section,
    SeenText,
    Series,
    Table,
    Text,
    TextItem,
    Texts,
    Tokens,
    TokenView,
)

__all__ = [
    "PAGE",
    "Cell",
    "Chart",
    "Page",
    "Section",
    "SeenText",
    "Series",
    "Table",
    "Text",
    "TextItem",
    "Texts",
    "TokenView",
    "Tokens",
]
