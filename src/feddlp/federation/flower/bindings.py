"""Which clients a node's key stands for: clients.json beside the SuperLink's database, by Flower's id of the node."""

from collections.abc import Collection
from pathlib import Path

from feddlp.files import held_alone
from feddlp.states import Sealed, read, write

FILE = "clients.json"
VARIABLE = "FEDDLP_BINDINGS"  # in which a SuperLink that asks for keys tells the servers of its runs where that is


class Bindings(Sealed):
    """clients.json"""

    clients: dict[str, list[int]]


def bind(place: Path, node: str, clients: Collection[int]) -> None:
    """From now on a node may hold these clients and no others; with none it is forgotten."""
    with held_alone(place, ".clients.lock"):
        bound = known(place / FILE) | {node: list(clients)}
        write(place / FILE, Bindings(clients={key: held for key, held in bound.items() if held}))


def known(file: Path) -> dict[str, list[int]]:
    found = read(file, Bindings)
    return found.clients if found else {}


def check_bound(file: str, node: int, clients: Collection[int]) -> None:
    """Raises RefusedError where a node holds clients that its key does not stand for. file: "" = there are no keys"""
    held = known(Path(file)).get(str(node), []) if file else clients
    if strange := set(clients) - set(held):
        from feddlp.federation.flower.envelopes import RefusedError  # brings Flower, which commands do without

        raise RefusedError(
            f"its key is not registered for client {min(strange)}; feddlp federate unregister {node}, then register it "
            "with the right --clients"
        )
