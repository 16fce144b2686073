"""Colours of pictures and pages alike: told apart with any colour vision."""

# Okabe and Ito's colours, in the order in which models take them.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
REST = "#999999"
WINE, OLIVE = "#882255", "#999933"  # two more, of Paul Tol's "muted"
MODELS = (REST, BLUE, SKY, GREEN, ORANGE, RED, PURPLE, BLACK, WINE, OLIVE)
