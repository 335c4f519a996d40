"""Flower's two apps, as `assets/flower-app` names them."""

from __future__ import annotations

import logging
import os
import sys

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from feddlp.allocator import keep_freed_memory
from feddlp.errors import UserError
from feddlp.federation.flower.parcels import from_record, to_record
from feddlp.progress import PlainReporter

client = ClientApp()
server = ServerApp()


@client.query()
@client.train()
def answer(message: Message, context: Context) -> Message:
    """Hello, the start, or a round: all that a node is ever asked."""
    from feddlp.commands.common import quiet_libraries
    from feddlp.federation.flower.node import answer

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="feddlp: %(message)s")
    keep_freed_memory()
    quiet_libraries()
    said = answer(from_record(message.content), context.node_config, os.environ)
    return Message(to_record(said), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """One run from where it stands to its end."""
    from feddlp.commands.common import quiet_libraries
    from feddlp.federation.flower.serving import serve

    quiet_libraries()
    reporter = PlainReporter(Console(width=200))
    try:
        serve(grid, context.run_config, reporter)
    except UserError as error:
        raise RuntimeError(f"feddlp: error: {error}") from None
