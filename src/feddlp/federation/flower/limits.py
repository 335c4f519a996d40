"""Limits of what other machines may send, in one place. What exceeds one is refused before it is used or allocated."""

from __future__ import annotations

from feddlp.files import MIB

# Requests to the SuperLink. Flower cuts adapters into objects of 5 MiB, each the body of a request of its own, so that
# an upload of any size passes; the largest body is the facts of a report of some ten thousand clients.
BODY = (32 * MIB, 300.0)  # bytes and seconds
STRANGERS_BODY = (64 * 1024, 20.0)  # where no registered node has signed the request
BODIES = 256 * MIB  # of all requests that are being answered
SILENCE = 20.0  # seconds in which a connection must bring a whole request header
CONNECTIONS, OF_ONE_MACHINE = 512, 256  # from elsewhere

# Messages
FACTS = 64 * MIB  # characters; a million class names, or the reports of ten thousand clients
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
