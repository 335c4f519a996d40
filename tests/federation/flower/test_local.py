"""A federation on one machine: its nodes have what the configuration says of this machine."""

from __future__ import annotations

import pytest

from feddlp.config import load_config
from feddlp.errors import UserError
from feddlp.federation.flower.local import LocalFederation, check_nodes, shape_before
from feddlp.federation.flower.serving import new_run
from feddlp.federation.flower.settings import read_settings
from feddlp.records import RunFolder

NODES = 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["data.dataset=folder:photos", "model.checkpoint=clip", "data.clients=8", "model.device=cpu"]
    return new_run(load_config(None, [*words, f"runs_dir={tmp_path / 'runs'}"]))


@pytest.mark.parametrize("simulated", [False, True])
def test_nodes_share_the_clients_and_use_the_data_and_the_checkpoint_of_the_configuration(folder, simulated):
    federation, config = LocalFederation(folder, NODES, None, simulated), load_config(folder.config)
    found = []
    for node in range(NODES):
        words = federation.node_config(config, node)
        if simulated:
            words = {"partition-id": node, "num-partitions": NODES}
        found.append(read_settings(words, federation.simulated_settings(), 8))
    assert [client for settings in found for client in settings.clients] == list(range(8))
    assert len({settings.state_dir for settings in found}) == NODES
    for settings in found:
        own = settings.localised(config)
        assert (own.data.dataset, own.model.checkpoint) == (config.data.dataset, config.model.checkpoint)
        assert own.model.device == "cpu"
        assert settings.tell_classes


@pytest.mark.parametrize("nodes", [0, 9, -1])
def test_more_nodes_than_clients_are_a_mistake(folder, nodes):
    with pytest.raises(UserError, match=rf"--nodes {nodes} cannot share data.clients=8; use 1 to 8"):
        check_nodes(nodes, load_config(folder.config))


def test_a_run_of_something_else_is_not_resumed(folder):
    with pytest.raises(UserError, match=r"is no run of feddlp federate up; go on with feddlp resume"):
        shape_before(RunFolder.open(folder.path))
