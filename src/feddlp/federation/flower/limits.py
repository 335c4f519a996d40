"""Limits of what other machines may send to a server, all in one place."""

from __future__ import annotations

MIB = 2**20

# Requests to the SuperLink. Flower cuts adapters into objects of 5 MiB, each the body of a request of its own, so that
# an upload of any size passes; the largest body is the facts of a report of some ten thousand clients.
BODY = (32 * MIB, 300.0)  # bytes and seconds
STRANGERS_BODY = (64 * 1024, 20.0)  # where no registered node has signed the request
BODIES = 256 * MIB  # of all requests that are being answered
SILENCE = 20.0  # seconds in which a connection must bring a whole request header
CONNECTIONS, OF_ONE_MACHINE = 512, 256  # from elsewhere
