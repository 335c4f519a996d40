"""A node, asked in this process."""

import pytest
from PIL import Image

from feddlp import __version__
from feddlp.config import load_config
from feddlp.federation.flower import node
from feddlp.federation.flower.envelopes import Envelope
from feddlp.federation.flower.node import answer, answer_envelope
from feddlp.federation.flower.parcels import Parcel, opened
from feddlp.federation.flower.settings import read_settings

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
        raise RuntimeError("smith_john.png")

    monkeypatch.setitem(node.ANSWERS, "train", broken)
    said = answer(order(tmp_path), {"clients": "0", "state-dir": str(tmp_path)}, {})
    assert said.facts["problem"] == "RuntimeError; the node's log says more"


@pytest.fixture
def photos(tmp_path):
    """A hospital's images, one of them damaged."""
    for kind in ("healthy", "ill"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (16, 16), (index * 12, 0, 0)).save(tmp_path / "photos" / kind / f"{index}.png")
    (tmp_path / "photos" / "ill" / "smith_john.png").write_bytes(b"no image")
    return f"folder:{tmp_path / 'photos'}"


def greeted(tmp_path, data, *words, **settings):
    """What a node says of itself."""
    configuration = load_config(None, [*WORDS, *words]).to_toml()
    own = {"clients": "0-1", "state-dir": str(tmp_path / "state"), "data": data}
    own |= {key.replace("_", "-"): value for key, value in settings.items()}
    return answer(order(tmp_path, kind="hello", configuration=configuration), own, {}).facts


def test_the_server_does_not_learn_what_files_are_called(tmp_path, photos, caplog):
    said = greeted(tmp_path, photos, "data.partition=iid")
    assert said["problem"] == "its images or its checkpoint cannot be used; its log says why"
    assert "smith_john" not in str(said)
    assert "smith_john.png" in caplog.text
    assert "smith_john.png" in greeted(tmp_path, photos, "data.partition=iid", tell_problems="yes")["problem"]


@pytest.mark.parametrize("kind", ["folder", "clients", "csv"])
def test_a_site_of_one_class_joins_a_natural_federation(kind, tmp_path):
    """From the check at its start to what it tells the server."""
    for index in range(20):
        place = tmp_path / "site" / ("ward" * (kind == "clients")) / "ill"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (index * 12, 0, 0)).save(place / f"{index}.png")
    data = f"{kind}:{tmp_path / 'site'}"
    if kind == "csv":
        lines = [f"site/ill/{index}.png,ill,ward" for index in range(20)]
        (tmp_path / "site.csv").write_text("\n".join(["path,label,client", *lines]))
        data += ".csv"
    read_settings({"clients": "1", "state-dir": str(tmp_path / "state"), "data": data}, {}, 2).check()
    said = greeted(tmp_path, data, "data.partition=natural", "data.clients=2", clients="1", tell_problems="yes")
    assert said.get("problem") is None
    assert said["class_names"] == ["ill"]


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_the_server_does_not_decide_whether_it_learns_of_which_class_images_are(partition, tmp_path, photos):
    words = [f"data.partition={partition}", "data.on_bad_image=skip", "data.dirichlet_beta=10.0"]
    said = greeted(tmp_path, photos, *words)
    assert (said["class_names"], said["classes"]) == (["healthy", "ill"], None)
    told = greeted(tmp_path, photos, *words, tell_classes="yes")["classes"]
    assert sum(counts.get("ill", 0) for one in told for counts in one.values()) == 20


def test_rendered_images_are_nobodys_secret(tmp_path):
    assert greeted(tmp_path, "digits")["classes"] is not None


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
