"""What a site takes away from its node is what its clients have in a run in one process."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from fakegrid import FakeGrid, Listener, Time, real, served, small
from feddlp import api, experiment, trained
from feddlp.card import accuracy
from feddlp.errors import UserError
from feddlp.federation.flower.harvest import experiments, take
from feddlp.inference import load_predictor
from feddlp.printing import print_run
from feddlp.records import RunFolder


@pytest.fixture(scope="module")
def played(tmp_path_factory, model_loaded_once):
    """A run over two nodes, and the same in one process."""
    folder = tmp_path_factory.mktemp("played")
    config = small(methods=["feddlp"], runs_dir=str(folder), training={"rounds": 2})
    nodes = {7: real(clients="0,2", state_dir=folder / "a"), 14: real(clients="1", state_dir=folder / "b")}
    served(FakeGrid(Time(), nodes), config)
    return folder, experiment.run(config, Listener())


@pytest.mark.parametrize(("node", "client"), [("a", 0), ("a", 2), ("b", 1)])
def test_a_node_gives_the_models_of_its_clients(node, client, played, tmp_path):
    folder, expected = played
    run = take(folder / node, tmp_path / "here")
    found = trained.read_client(run, "feddlp", client, "local")
    assert accuracy(run, found) == "the client has no test samples"
    wanted = trained.read_client(expected, "feddlp", client, "local")
    assert found.round == wanted.round
    for name, theta in wanted.theta.items():
        for leaf, value in theta.items():
            torch.testing.assert_close(found.theta[name][leaf], value, rtol=0, atol=1e-6)
    shared = trained.read_client(take(folder / node, tmp_path / "again"), "feddlp", client, "global")
    assert shared.theta.keys() == {"global"}


@pytest.mark.parametrize("merge", [False, True])
def test_what_was_taken_is_exported_and_predicts_as_the_client_does(merge, played, digits, tmp_path):
    folder, expected = played
    run = take(folder / "a", tmp_path / "here")
    api.load_run(run.path).export(2, tmp_path / "model", merge=merge)
    ours = api.load_run(expected.path).client(2).logits(digits.images[::100])
    found = load_predictor(tmp_path / "model", device="cpu").logits(digits.images[::100])
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-3)


def test_what_was_taken_is_neither_shown_nor_gone_on_with(played, tmp_path):
    run = take(played[0] / "a", tmp_path / "here")
    with pytest.raises(UserError, match="holds models that were taken from a node, and no scores"):
        print_run(run, Console(quiet=True))
    with pytest.raises(UserError, match="holds models that were taken from a node"):
        experiment.resume(run.path, Listener())


def test_the_clients_of_other_nodes_are_not_there(played, tmp_path):
    folder, _ = played
    with pytest.raises(UserError, match="--client 1 never took part"):
        trained.read_client(take(folder / "a", tmp_path / "here"), "feddlp", 1)


def test_the_server_has_the_shared_adapter_and_nobodys_own(played):
    folder, expected = played
    run = RunFolder(folder / "run")
    found, wanted = (trained.read_client(one, "feddlp", 1, "global").theta["global"] for one in (run, expected))
    for leaf, value in wanted.items():
        torch.testing.assert_close(found[leaf], value, rtol=0, atol=1e-6)
    assert trained.classes_of(run) == trained.classes_of(expected)
    with pytest.raises(UserError, match=r"--client 1 never took part .* add --adapter global"):
        trained.read_client(run, "feddlp", 1)


def test_mistakes_are_one_line(played, tmp_path):
    folder, _ = played
    with pytest.raises(UserError, match="is no state folder in which a round was played"):
        take(tmp_path, tmp_path / "here")
    with pytest.raises(UserError, match=r"--run other: .* does not hold it"):
        take(folder / "a", tmp_path / "here", "other")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=r"--to .*taken is there already"):
        take(folder / "a", tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert len(experiments(folder / "a")) == 1
