"""Questions to clients that are away."""

import pytest
import torch

from feddlp.config import load_config
from feddlp.errors import UserError
from feddlp.federation.flower import inquiry
from feddlp.federation.flower.inquiry import Inquiry, Question
from feddlp.federation.flower.nodes import Nodes
from feddlp.federation.flower.remote import RemoteClients


class Nobody:
    """A post without nodes, a registry without members, a reporter, and a clock that moves when one looks at it."""

    class_names, frozen, now = (), {}, 0.0

    def __init__(self):
        self.lines = []

    def nodes(self):
        return set()

    def collect(self):
        return iter(())

    def fill(self, roster):
        pass

    def clock(self):
        self.now += 1.0
        return self.now

    def warn(self, line):
        self.lines.append(line)


@pytest.fixture
def nobody(monkeypatch):
    monkeypatch.setattr(inquiry, "POLL", 0.0)
    return Nobody()


@pytest.fixture
def nodes(nobody):
    return Nodes(nobody, nobody, None, 4, nobody, nobody.clock)


def test_how_clients_begin_does_not_wait_for_who_is_away(nobody, nodes):
    config = load_config(None, ["data.clients=4", "training.participation=0.5", "methods=local"])
    clients = RemoteClients(nodes, config, "local", {})
    assert list(clients.begin(torch.tensor([[False, False, False, True]]))) == []
    assert nobody.now <= config.deployment.grace + 20
    assert nobody.lines == []


def test_a_round_waits_for_its_quorum_until_the_deadline(nobody, nodes):
    limits = load_config(None, []).deployment
    question = Question("local round 1", None, None, None, quorum=0.5)
    with pytest.raises(UserError, match="0 of 1 clients answered"):
        Inquiry(nodes, limits, question, {3}).answered()
    assert nobody.now >= limits.deadline
