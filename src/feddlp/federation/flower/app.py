"""Flower's two apps, as `assets/flower-app` names them. What they need is imported when it is needed."""

from __future__ import annotations

import logging
import os

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from feddlp.federation.flower.envelopes import from_record, to_record
from feddlp.federation.flower.resident import ask

KEEP_WARM = 900.0  # seconds that a node's process waits for the next message

client = ClientApp()
server = ServerApp()


@client.query()
@client.train()
def answer(message: Message, context: Context) -> Message:
    """Hello, the start, or a round: all that a node is ever asked; by its resident, or without one, by this process."""
    envelope, settings = from_record(message.content), context.node_config
    simulated = "clients" not in settings  # by Flower's simulation, which has processes that stay
    idle = float(settings.get("keep-warm", 0.0 if simulated else KEEP_WARM))
    if idle > 0 and hasattr(os, "getuid"):
        said = ask(envelope, settings, idle)
    else:
        from feddlp.federation.flower.node import answer_envelope, set_up

        set_up()
        said = answer_envelope(envelope, settings)
    return Message(to_record(said), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """One run from where it stands to its end."""
    from feddlp.commands.common import quiet_libraries
    from feddlp.errors import OURS, UserError
    from feddlp.federation.flower.serving import serve
    from feddlp.names import printable
    from feddlp.printing import print_finished
    from feddlp.progress import Console, PlainReporter

    quiet_libraries()
    console = Console(width=200)
    try:
        serve(grid, context.run_config, PlainReporter(console), lambda folder: print_finished(folder, console))
    except UserError as error:
        logging.getLogger("flwr").addFilter(in_one_line)
        raise RuntimeError(f"{OURS}{printable(error)}") from None


def in_one_line(record: logging.LogRecord) -> bool:
    """What Flower logs of our exception, without a traceback."""
    if record.exc_info and record.exc_info[1]:
        record.msg, record.args, record.exc_info = str(record.exc_info[1]), (), None
    return True
