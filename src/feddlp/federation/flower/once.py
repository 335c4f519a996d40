"""What a SuperNode starts for a message, in place of Flower's own `flwr-clientapp`; of several, one goes on.

A SuperNode hands a message on to another process where none has called for it within 30 s. On a machine so busy that
the imports alone take longer, all of them are too late. Here the one that came first goes on, with the newest token,
and the others end before they import anything heavy; a SuperNode has one message at a time.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from filelock import FileLock, Timeout


def main() -> None:
    place = sys.argv.index("--token") + 1
    node = re.sub(r"\W", "-", sys.argv[sys.argv.index("--runtime-api-address") + 1])
    token = Path(sys.argv[0]).with_name(f"{node}.token")
    fresh = token.with_suffix(f".{os.getpid()}")
    fresh.touch(0o600)
    fresh.write_text(sys.argv[place])
    fresh.replace(token)
    try:
        with FileLock(token.with_suffix(".lock"), blocking=False):
            from flwr.supernode.cli import flwr_clientapp

            sys.argv[place] = token.read_text()
    except Timeout:
        sys.exit("feddlp: another process is about to answer this message")
    flwr_clientapp()
