"""Limits of what a message may hold, in one place. What exceeds one is refused before it is used or allocated."""

FACTS = 64 * 2**20  # characters; a million class names, or the reports of ten thousand clients
NAME = 1_000  # characters of a class, a node or a layer
LINE = 300  # characters of what a node says that are shown and recorded
CLASSES = CLIENTS = 1_000_000
WAYS = 100  # to predict
SECONDS = 1e9  # of a round
LOSS = 1e30

# Where adapters act, as the first node says, and so what is allocated
SITES = 10_000
WIDTH = 2**20  # of a layer; embeddings of 256,000 tokens are the widest
WEIGHTS = 2**33  # at all sites together
PARAMETER = 32  # bytes of a shared parameter at the server: held, sent, summed in float64, one upload, momentum

SLACK = 64 * 1024  # bytes of names and shapes, for each adapter
