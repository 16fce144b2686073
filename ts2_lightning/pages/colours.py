"""Colours of pictures and pages alike: told apart with any colour vision."""

# Okabe and Ito's colours, in the order in which models take them.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
REST = "#999999"
WINE, OLIVE, INDIGO = "#882255", "#999933", "#332288"  # three more, of Paul Tol's "muted"
BROWN, VIOLET = "#5D3A1A", "#7F3C8D"  # the farthest from all of these for the colour vision that tells them apart worst
MODELS = (REST, BLUE, SKY, GREEN, ORANGE, RED, PURPLE, BLACK, WINE, OLIVE, INDIGO, BROWN, VIOLET)
