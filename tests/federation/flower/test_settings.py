"""A node's own settings: which clients, whose images, where their state is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakegrid import small
from feddlp.errors import UserError
from feddlp.federation.flower.settings import parse_clients, read_settings, spell

HERE = {"clients": "0-1", "state-dir": "/s"}


@given(st.sets(st.integers(0, 60), min_size=1))
def test_clients_are_read_as_they_are_spelt(clients):
    assert parse_clients(spell(list(clients))) == tuple(sorted(clients))
    assert parse_clients(spell(list(clients)).replace(" ", "")) == tuple(sorted(clients))


@given(st.text("0123456789-, ", max_size=12) | st.text(max_size=6))
def test_any_text_is_clients_or_one_line(text):
    try:
        found = parse_clients(text)
    except UserError as error:
        assert "node-config: clients=" in str(error)  # noqa: PT017
    else:
        assert list(found) == sorted(set(found))


@pytest.mark.parametrize(
    "text", ["9" * 5000, "0-" + "9" * 5000, "2-1", "-1", "1-", "٣", "0-1000000", "1,,2", ",", "1 2"]
)
def test_what_is_no_list_of_clients_is_one_line(text):
    with pytest.raises(UserError, match="is no list of clients"):
        parse_clients(text)


@pytest.mark.parametrize(("nodes", "clients"), [(1, 10), (3, 10), (10, 10), (7, 100)])
def test_simulated_nodes_share_all_clients_and_no_state_folder(nodes, clients):
    environment = {"FEDDLP_STATE_DIR": "/s"}
    found = [
        read_settings({"partition-id": node, "num-partitions": nodes}, environment, clients) for node in range(nodes)
    ]
    assert [client for node in found for client in node.clients] == list(range(clients))
    assert len({node.state_dir for node in found}) == nodes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"partition-id": 2, "num-partitions": 2}, "partition 2 of 2 is left without a client of 3"),
        ({"partition-id": 3, "num-partitions": 4}, ""),
        ({"partition-id": 0, "num-partitions": 0}, "is left without a client"),
        ({"partition-id": "x", "num-partitions": 2}, "node-config has no clients"),
        ({"partition-id": 0}, "node-config has no clients"),
        ({}, "node-config has no clients"),
        ({"clients": "3"}, "client 3 is none of data.clients=3, 0-2"),
        ({"clients": "0", "state-dir": ""}, "node-config has no state-dir"),
        ({"clients": "0", "tell-classes": "maybe"}, "node-config: tell-classes=maybe is neither yes nor no"),
        ({"clients": "0", "statedir": "/x"}, "node-config has statedir; did you mean state-dir?"),
    ],
)
def test_mistakes_are_one_line(words, line):
    if line:
        with pytest.raises(UserError) as caught:
            read_settings({"state-dir": "/s", **words}, {}, 3)
        assert line in str(caught.value)
    else:
        assert read_settings({"state-dir": "/s", **words}, {}, 3).clients == (2,)


def test_the_environment_stands_in_and_node_config_wins():
    environment = {"FEDDLP_CLIENTS": "2", "FEDDLP_STATE_DIR": "/e", "FEDDLP_NAME": "e"}
    found = read_settings({"name": "ward"}, environment, 3)
    assert (found.clients, str(found.state_dir), found.name) == ((2,), "/e", "ward")


def test_the_server_never_says_which_images_are_read():
    config = small(data={"dataset": "folder:/etc", "partition": "natural"})
    with pytest.raises(UserError, match=r"never read from this machine.s disk; start the node with --data folder:PATH"):
        read_settings(HERE, {}, 3).localised(config)
    own = read_settings({**HERE, "data": "folder:/photos", "checkpoint": "there"}, {}, 3).localised(config)
    assert (own.data.dataset, own.model.checkpoint, own.model.device) == ("folder:/photos", "there", "auto")


@pytest.mark.parametrize(
    "checkpoint", ["/models/clip", "./clip", "~/clip", "openai/clip-vit-base-patch32", "tiny-clip2"]
)
def test_a_node_takes_no_frozen_model_on_the_servers_word(checkpoint):
    config = small(model={"checkpoint": checkpoint})
    with pytest.raises(
        UserError,
        match=r"checkpoint=\S+ is not taken on its word.*start the node with --checkpoint and a folder",
    ):
        read_settings(HERE, {}, 3).localised(config)
    assert read_settings({**HERE, "checkpoint": "here"}, {}, 3).localised(config).model.checkpoint == "here"
    assert read_settings(HERE, {}, 3).localised(small()).model.checkpoint == "tiny-clip"


def test_how_much_memory_a_node_takes_is_its_own_business():
    config = small(training={"memory_limit": 64.0, "wave": 1000})
    own = read_settings(HERE, {}, 3).localised(config).training
    assert (own.memory_limit, own.wave) == ("auto", 0)
    assert read_settings({**HERE, "memory-limit": "512MiB"}, {}, 3).localised(config).training.memory_limit == 0.5
    with pytest.raises(UserError, match="memory-limit=much"):
        read_settings({**HERE, "memory-limit": "much"}, {}, 3)
