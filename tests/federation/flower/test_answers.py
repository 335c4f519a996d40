"""A node, asked in this process."""

import pytest

from feddlp import __version__
from feddlp.config import load_config
from feddlp.federation.flower import node
from feddlp.federation.flower.envelopes import Envelope
from feddlp.federation.flower.node import answer, answer_envelope
from feddlp.federation.flower.parcels import Parcel, opened

EXPERIMENT = "0" * 32
WORDS = ["data.clients=2", "training.rounds=1", "methods=local"]


def order(tmp_path, **facts):
    told = {"kind": "train", "experiment": EXPERIMENT, "method": "local", "round": 0, "clients": [0]}
    configuration = load_config(None, WORDS).to_toml()
    return Parcel({**told, "version": __version__, "configuration": configuration, **facts})


@pytest.mark.parametrize(
    "facts",
    [{"experiment": "../../elsewhere"}, {"experiment": "/elsewhere"}, {"method": "../local"}, {"method": "feddlp"}],
)
def test_what_the_server_names_leads_nowhere_but_into_the_state_folder(facts, tmp_path):
    state = tmp_path / "a" / "b" / "state"
    said = answer(order(tmp_path, **facts), {"clients": "0", "state-dir": str(state)}, {})
    assert "cannot be" in said.facts["problem"]
    assert not list(tmp_path.iterdir())


def test_what_nobody_expected_is_one_line_for_the_server(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setitem(node.ANSWERS, "train", broken)
    said = answer(order(tmp_path), {"clients": "0", "state-dir": str(tmp_path)}, {})
    assert said.facts["problem"] == "RuntimeError: out of memory; the node's log has more"


@pytest.mark.parametrize("facts", ["{", "[]", '{"protocol": 0}'])
def test_a_message_that_is_not_understood_is_answered(facts):
    assert "not understood" in opened(answer_envelope(Envelope(facts), {})).facts["problem"]


def test_a_hello_looks_at_images_and_weights_anew(tmp_path, monkeypatch):
    looked = []

    class Stop(Exception):  # noqa: N818
        pass

    def prepare(*_):
        looked.append(True)
        raise Stop("enough")

    monkeypatch.setattr(node, "prepare", prepare)
    node.load.cache_clear()
    for _ in range(2):
        answer(order(tmp_path, kind="hello"), {"clients": "0", "state-dir": str(tmp_path)}, {})
    assert len(looked) == 2
