"""What a reader needs beside the figures, in plain text."""

from gatelab.bench.trace.vocabulary import MIN_TOKENS, MOST_IDS

BALANCE = (
    "MaxVio is how far the busiest expert is over the mean load (0 = even): per window (the mean over windows), and of "
    "the summed counts. CV is the standard deviation over the mean; Gini 0 = even; entropy that of the load over ln E, "
    "1 = even. Dead experts got no token at all."
)
GATE = (
    "How sure the gate is of a token: the entropy of its probabilities, in nats and as a share of ln E (1 = "
    "undecided), and the lead of the best expert over the second. Experts per token counts those that compute nothing "
    "too. None of these is good or bad by itself."
)
SPECIALIZATION = (
    "Token id: the share of an id's occurrences that its favourite expert gets, mean over frequent ids, over "
    f"all of a token's experts and over its first choice alone. Frequent are ids with at least {MIN_TOKENS} tokens, at "
    f"most the {MOST_IDS:,} most frequent. Info: what the token id, or the text, tells about the expert, in "
    "nats; by chance is what as many independent assignments would read. Partner: the share of an expert's tokens that "
    "its closest partner also gets, mean over experts."
)
DEVICES = (
    "Fullest device: its load over the mean load (the straggler factor), when the layer's experts are spread over that "
    "many devices in their order and all wait for the fullest; per window, and of the summed counts, as in a very long "
    "step. Experts for 50, 90 and 99 %: the busiest ones that together get so much of the assignments."
)
LAYERS = "The token ids of an expert are those that most reliably come to it; ␣ is a space, ⏎ a line end."
