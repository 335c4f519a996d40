"""Commands that make what a deployment trusts: keys server, keys node, keys list."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from feddlp.commands.common import Debug, help_alone, needing

app = typer.Typer(help="Make the certificates and keys of a federation across machines.", rich_markup_mode=None)
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of keys.")]
KEYS = Path("keys")


@app.callback(invoke_without_command=True)
def options(context: typer.Context) -> None:
    """Make the certificates and keys of a federation across machines."""
    help_alone(context)


@app.command()
def server(
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME_OR_IP", help="Where nodes reach the server; may be given several times."),
    ] = None,
    out: Out = KEYS,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificate is valid.")] = 365,
    renew: Annotated[
        bool, typer.Option("--renew", help="A new certificate for the same key; its hosts are kept if none is given.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make the server's TLS certificate, and the private CA that signs it where there is none.

    \b
    feddlp keys server --host fl.example.org --host 10.0.0.7
    feddlp keys server --renew
    """
    with needing("keys", "flower"):
        from feddlp.federation.flower import keys

    made = keys.make_server(out, host or [], days, renew)
    print(f"{out}/server.crt: for {', '.join(keys.hosts_of(made))}, until {made.not_valid_after_utc:%Y-%m-%d}")
    print(f"give every node {out}/ca.crt; {out}/ca.key and {out}/server.key are secret")


@app.command()
def node(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the node is called, such as hospital-a.")],
    out: Out = KEYS,
    debug: Debug = False,
) -> None:
    """Make a node's key pair: the private key is for the node, the public one is registered with the server.

    \b
    feddlp keys node hospital-a
    """
    with needing("keys", "flower"):
        from feddlp.federation.flower import keys

    keys.make_node(out, name)
    print(f"{out}/{name}.key: secret; feddlp federate node --keys {out} --name {name} ...")
    register = shlex.join(["feddlp", "federate", "register", f"{out}/{name}.pub", "--keys", str(out)])
    print(f"{out}/{name}.pub: register it with: {register} --clients N (its clients, such as 0 or 0-2,7)")


@app.command("list")
def listed(out: Out = KEYS, debug: Debug = False) -> None:
    """Say what each file of a folder is, for whom, and until when; what expires within 30 days comes last.

    \b
    feddlp keys list
    """
    with needing("keys", "flower"):
        from feddlp.federation.flower import inventory, keys

    for line in inventory.table(inventory.inventory(out, keys.now())):
        print(line)
