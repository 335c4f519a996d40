"""Which clients a node's key stands for: clients.json beside the SuperLink's database, by Flower's id of the node."""

from collections.abc import Collection
from pathlib import Path

from pydantic import Field

from feddlp.federation.flower.settings import spell
from feddlp.files import held_alone
from feddlp.states import Sealed, read, write

FILE = "clients.json"
VARIABLE = "FEDDLP_BINDINGS"  # in which a SuperLink that asks for keys tells the servers of its runs where that is


class Bindings(Sealed):
    """clients.json"""

    clients: dict[str, list[int]]
    keys: dict[str, tuple[str, str]] = Field(default_factory=dict)  # by node: its key's name and checksum


def bind(place: Path, node: str, clients: Collection[int], name: str = "", key: str = "") -> None:
    """Register a node's clients and key in place of those it had; without clients, remove it."""
    with held_alone(place, ".clients.lock"):
        bound = known(place / FILE)
        for old in [node, *(one for one, (_, known_as) in bound.keys.items() if key and known_as == key)]:
            bound.clients.pop(old, None), bound.keys.pop(old, None)
        if clients:
            bound.clients[node], bound.keys[node] = list(clients), (name, key)
        write(place / FILE, bound)


def known(file: Path) -> Bindings:
    return read(file, Bindings) or Bindings(clients={})


def shared(place: Path, node: str, clients: Collection[int]) -> dict[str, str]:
    """Other nodes that are registered for some of these clients, by number: their names and clients, in words."""
    bound = known(place / FILE)
    others = {other: held for other, held in bound.clients.items() if other != node and {*held} & {*clients}}
    names = {other: name for other, (name, _) in bound.keys.items()}
    return {other: f"{names.get(other, 'a node')} (clients {spell(held)})" for other, held in others.items()}


def check_bound(file: str, node: int, clients: Collection[int]) -> None:
    """Raises RefusedError where a node holds clients that its key does not stand for. file: "" = there are no keys"""
    held = known(Path(file)).clients.get(str(node), []) if file else clients
    if strange := set(clients) - set(held):
        from feddlp.federation.flower.envelopes import RefusedError  # brings Flower, which commands do without

        raise RefusedError(
            f"its key is not registered for client {min(strange)}; register it again with the right --clients"
        )
