"""Over Flower a run is the run that it would be in one process, killed or not; what is private stays where it is."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from flwr.app import Error
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from fakegrid import NEVER, FakeGrid, Killed, Listener, Time, real, served, small
from feddlp import experiment
from feddlp.errors import UserError
from feddlp.federation.flower import serving
from feddlp.federation.flower.parcels import Parcel, from_record, to_bytes
from feddlp.federation.participation import draw
from feddlp.report.page import render
from feddlp.states import KEPT
from feddlp.training.cohort import Cohort

SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("feddat", "feddlp_shared", "fedavg")]
METHODS = ["feddlp", "flora", "fedclip", "local", "zero_shot", *SLOW]


def a_grid(folder, *shares, **options):
    """Nodes that share the clients, each with a state folder of its own."""
    nodes = {7 * n: real(clients=share, state_dir=folder / f"node-{n}") for n, share in enumerate(shares, 1)}
    return FakeGrid(Time(), nodes, **options)


def rounds(run):
    ours = ("seconds", "peak_mib", "wave", "activation_mib")
    rows = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ours} for row in rows]


def assert_same(found, expected, exact=False):
    """The same rows, and the same server to 1e-6 or to the bit."""
    assert (found.path / "clients.csv").read_text() == (expected.path / "clients.csv").read_text()
    if exact:
        assert rounds(found) == rounds(expected)
        assert (found.path / "config.toml").read_text() == (expected.path / "config.toml").read_text()
    for method in expected.state().methods:
        mine, theirs = (run.load_checkpoint(method) for run in (found, expected))
        assert mine[0] == theirs[0]
        assert mine[1].keys() == theirs[1].keys()
        for name, value in theirs[1].items():
            torch.testing.assert_close(mine[1][name], value, rtol=0, atol=0 if exact else 1e-6)


# As in one process

TOLD = ("class_names", "template", "clients")


@pytest.mark.parametrize("method", METHODS)
def test_two_nodes_and_one_node_play_the_run_of_one_process(method, tmp_path):
    config = small(methods=[method], runs_dir=str(tmp_path))
    expected = experiment.run(config, Listener())
    for shares in (("0-1", "2"), ("0-2",)):
        found = served(a_grid(tmp_path / shares[0], *shares), config)
        assert_same(found, expected)
        assert found.read_partition() == {key: expected.read_partition()[key] for key in TOLD}


@pytest.mark.parametrize("method", ["fedclip", pytest.param("feddlp", marks=pytest.mark.slow), "local"])
def test_so_they_do_where_clients_sit_out_and_reports_are_lost(method, tmp_path):
    training = {"participation": 0.5, "report_rate": 0.7, "rounds": 4}
    config = small(methods=[method], runs_dir=str(tmp_path), data={"clients": 5}, training=training)
    expected = experiment.run(config, Listener())
    for shares in (("0,3", "1-2", "4"), ("0-4",)):
        assert_same(served(a_grid(tmp_path / shares[0], *shares), config), expected)


def poisoned(node, change, rounds=(0,)):
    """A node whose uploads of some rounds are something else."""
    honest = node.says

    def says(parcel):
        said = honest(parcel)
        if parcel.facts.get("round") not in rounds or "problem" in said.facts:
            return said
        changed = {name: {leaf: change(v) for leaf, v in theta.items()} for name, theta in said.adapters.items()}
        return Parcel(said.facts, changed)

    node.says = says


@pytest.mark.parametrize(
    ("size", "shares"),
    [
        (1e30, ("0", "1", "2")),
        (1e2, ("0", "1-2")),
        pytest.param(1e2, ("0", "1", "2"), marks=pytest.mark.slow),
        pytest.param(1e4, ("0", "1", "2"), marks=pytest.mark.slow),
        pytest.param(1e4, ("0", "1-2"), marks=pytest.mark.slow),
        pytest.param(1e30, ("0", "1-2"), marks=pytest.mark.slow),
    ],
)
def test_a_poisoned_round_goes_on_without_the_poison(size, shares, tmp_path):
    """And ends as if the node had been away in it: nobody else's adapters are touched, the poisoner's neither."""
    config = small(runs_dir=str(tmp_path), deployment={"wait": 5.0, "grace": 5.0})
    found = []
    for how in (lambda v: torch.full_like(v, size), lambda v: v * math.nan):
        grid = a_grid(tmp_path / str(len(found)), *shares)
        poisoned(grid.nodes[7], how)
        reporter = Listener()
        found.append(served(grid, config, reporter))
        (line,) = [line for line in reporter.warnings if "round 1: client 0" in line]
    assert "left out: adapters global/" in line or "left out: global/" in line
    assert_same(found[0], found[1], exact=True)
    for file in tmp_path.rglob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(file).values()), file


def test_poison_of_most_ends_the_run_at_its_quorum_and_it_can_be_resumed(tmp_path):
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training={"rounds": 2})
    grid = a_grid(tmp_path, "0", "1-2")
    poisoned(grid.nodes[14], lambda v: torch.full_like(v, 1e4))
    reporter = Listener()
    with pytest.raises(UserError, match=r"fedclip round 1: 1 of 3 clients answered, deployment.quorum=0.5 asks for 2"):
        served(grid, config, reporter)
    assert [line.partition(" of ")[0] for line in reporter.warnings] == [
        f"fedclip round 1: client {client}: left out: its upload has the norm 1.36e+06, out" for client in (1, 2)
    ]
    grid = a_grid(tmp_path, "0", "1-2")
    (run,) = (path.parent for path in tmp_path.glob("*/config.toml"))
    assert_same(served(grid, run), experiment.run(config.model_copy(update={"name": "alone"}), Listener()))


def test_a_largest_share_holds_and_is_said_once(tmp_path):
    data = {"partition": "dirichlet", "dirichlet_beta": 0.3}
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), data=data, training={"rounds": 2})
    capped = config.model_copy(update={"deployment": config.deployment.model_copy(update={"max_share": 0.34})})
    reporter = Listener()
    found, expected = served(a_grid(tmp_path / "a", "0-2"), capped, reporter), experiment.run(config, Listener())
    assert [line for line in reporter.warnings if "max_share" in line] == [
        "deployment.max_share=0.34 holds down the weight of the largest clients"
    ]
    mine, theirs = (run.load_checkpoint("fedclip")[1] for run in (found, expected))
    assert any(not torch.equal(mine[key], theirs[key]) for key in theirs)


def test_what_a_node_tells_of_its_time_is_a_number(tmp_path):
    grid = a_grid(tmp_path, "0", "1-2")
    honest = grid.nodes[7].says
    grid.nodes[7].says = lambda parcel: Parcel(
        {**(said := honest(parcel)).facts, "seconds": "9" * 10**6}, said.adapters
    )
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training={"rounds": 1, "participation": 0.9})
    found = served(grid, config)
    assert (found.path / "events.jsonl").stat().st_size < 100_000


def test_several_methods_one_after_the_other(tmp_path):
    config = small(methods=["zero_shot", "local", "fedclip"], runs_dir=str(tmp_path))
    assert_same(served(a_grid(tmp_path, "0", "1-2"), config), experiment.run(config, Listener()))


def test_natural_clients_with_folders_of_their_own(tmp_path):
    digits = load_digits()
    for index in range(90):
        label = digits.target[index] if index % 3 < 2 else 1  # one of them has images of one class only
        kind = tmp_path / "all" / f"ward-{index % 3}" / str(label)
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15).astype("uint8")).save(kind / f"{index}.png")
    data = {"partition": "natural", "dataset": f"clients:{tmp_path / 'all'}"}
    config = small(methods=["fedclip"], runs_dir=str(tmp_path / "runs"), data=data, training={"rounds": 2})
    expected = experiment.run(config, Listener())
    for tells in ("no", "yes"):
        nodes = {
            client: real(
                clients=client,
                state_dir=tmp_path / f"node-{client}-{tells}",
                data=f"folder:{tmp_path / 'all' / f'ward-{client}'}",
                tell_classes=tells if client else "yes",
                name=f"ward-{client}",
            )
            for client in range(3)
        }
        found = served(FakeGrid(Time(), nodes), config)
        assert_same(found, expected)  # names too: the nodes are called as the folders
        told = TOLD if tells == "yes" else TOLD[:2]  # of all clients, or of none
        assert found.read_partition() == {key: expected.read_partition()[key] for key in told} | {"own_data": True}
        assert "on the sites&#39; own images" in render([found])
    assert [row["name"] for row in csv.DictReader(found.clients.read_text().splitlines())][:3] == [
        "ward-0",
        "ward-1",
        "ward-2",
    ]


def test_clients_that_never_came_are_not_told_to_have_nothing(tmp_path):
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training={"rounds": 1}, deployment={"quorum": 0.3})
    found = served(a_grid(tmp_path, "0-1"), config)
    assert found.read_partition().keys() == {"class_names", "template"}


# Killed


KILLED = {"methods": ["fedclip", "zero_shot"], "training": {"rounds": 2}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    grid = a_grid(folder, "0-1", "2")
    return served(grid, small(**KILLED, runs_dir=str(folder))), grid.calls


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_a_server_killed_at_any_call_and_resumed_ends_as_undisturbed(part, undisturbed, tmp_path):
    """At every fourth call in each of four tests, before it or after it."""
    expected, calls = undisturbed
    for at in range(1 + part, calls + 1, 4):
        folder = tmp_path / str(at)
        config = small(**KILLED, runs_dir=str(folder))
        grid = a_grid(folder, "0-1", "2", dies_at=at, dies_after=bool(at // 4 % 2))
        with pytest.raises(Killed):
            served(grid, config)
        found = served(grid, folder / config.name)
        text = (found.path / "config.toml").read_text()
        (found.path / "config.toml").write_text(text.replace(str(folder), str(expected.path.parent)))
        assert_same(found, expected, exact=True)


def test_nobody_trains_twice_for_a_server_that_was_killed(tmp_path, monkeypatch):
    trained, fit = [], Cohort.fit

    def counted(self, *args):
        trained.append(self.slots)
        return fit(self, *args)

    monkeypatch.setattr(Cohort, "fit", counted)
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training={"rounds": 2})
    grid = a_grid(tmp_path, "0-2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feddlp.records.RunFolder.record_round", killed)
        with pytest.raises(Killed):
            served(grid, config)
    served(grid, tmp_path / config.name)
    assert len(trained) == 2


def killed(*_):
    raise Killed


def test_a_finished_run_is_not_played_again(undisturbed):
    expected, _ = undisturbed
    listener = Listener()
    served(FakeGrid(Time()), expected.path, listener)
    assert listener.notes == ["all rounds are played"]


def test_nodes_that_begin_anew_are_no_way_to_lose_a_run(tmp_path):
    """A run folder whose roster is gone is another experiment: it is refused, and nobody trains."""
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training={"rounds": 2})
    with pytest.raises(Killed):
        served(a_grid(tmp_path, "0-2", dies_at=16), config)
    (tmp_path / config.name / "roster.json").unlink()
    with pytest.raises(UserError, match="was begun in one process"):
        served(a_grid(tmp_path, "0-2"), tmp_path / config.name)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"members": {"x": 1}}', '{"members": 7}'])
def test_a_damaged_roster_is_one_line(content, tmp_path):
    config = small(methods=["fedclip"], runs_dir=str(tmp_path))
    run = serving.new_run(config)
    (run.path / "roster.json").write_text(content)
    with pytest.raises(UserError, match=r"roster.json is damaged"):
        served(a_grid(tmp_path, "0-2"), run.path)


# Taken back


@pytest.mark.parametrize(
    ("method", "back", "training"),
    [
        ("fedclip", 0, {}),
        pytest.param("feddlp", 1, {}, marks=pytest.mark.slow),
        ("fedclip", 2, {"participation": 0.5, "rounds": 5}),
        pytest.param("feddlp", 2, {"participation": 0.5, "rounds": 5}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_taken_back_ends_as_undisturbed(method, back, training, tmp_path):
    """Also where somebody's upload was wrong in the rounds that are taken back."""
    config = small(methods=["zero_shot", method], runs_dir=str(tmp_path / "expected"), training=training)
    expected = served(a_grid(tmp_path / "straight", "0-1", "2"), config)
    config = config.model_copy(update={"runs_dir": str(tmp_path / "found")})
    grid = a_grid(tmp_path / "misled", "0-1", "2")
    honest = grid.nodes[7].says
    grid.nodes[7].says = lambda parcel: moved(honest(parcel), parcel.facts.get("round", 0) >= back)
    run = served(grid, config)
    grid.nodes[7].says = honest
    listener = Listener()
    run = served(grid, run.path, listener, back=str(back))
    assert f"{method} is taken back to round {back}" in listener.notes
    text = (run.path / "config.toml").read_text()
    (run.path / "config.toml").write_text(text.replace(str(tmp_path / "found"), str(tmp_path / "expected")))
    assert_same(run, expected, exact=True)


def moved(parcel, wrong):
    """What a node says, its upload shifted by little enough to be taken, where it is to be wrong."""
    shift = 1e-3 * wrong
    uploads = {n: {leaf: value + shift for leaf, value in theta.items()} for n, theta in parcel.adapters.items()}
    return Parcel(parcel.facts, uploads)


@pytest.mark.parametrize(
    ("back", "line"),
    [
        ("x", "--from-round x is no round"),
        ("7", "of feddlp .*run keeps rounds 2, 3, 4, 5, 6, 8$"),
        ("1", "of feddlp .*run keeps rounds 2, 3, 4, 5, 6, 8$"),
    ],
)
def test_a_round_that_is_not_kept_is_refused_and_nothing_changes(back, line, tmp_path):
    config = small(methods=["feddlp"], runs_dir=str(tmp_path))
    run = serving.new_run(config)
    run.write_environment({})
    run.write_partition({"class_names": []})
    run.begin("feddlp")
    for number in (1, 2, 3, 4, 5, 6, 8):
        run.save_checkpoint("feddlp", number, {}, kept=KEPT)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=line):
        served(FakeGrid(Time()), run.path, back=back)
    assert {path: path.read_bytes() for path in before} == before


def test_a_method_that_another_one_has_followed_is_not_taken_back(tmp_path):
    run = serving.new_run(small(methods=["fedclip", "flora"], runs_dir=str(tmp_path)))
    for method, number in (("fedclip", 1), ("fedclip", 2), ("flora", 1), ("fedclip", 3)):
        run.begin(method)
        run.record_round({"method": method, "round": number}, [])
        run.save_checkpoint(method, number, {}, kept=KEPT)
    with pytest.raises(UserError, match="--from-round 2: another method has played since then"):
        run.take_back(2)


def test_a_killed_run_that_was_taken_back_keeps_its_tensors_until_that_is_committed(tmp_path):
    config = small(methods=["fedclip"], runs_dir=str(tmp_path))
    run = served(a_grid(tmp_path, "0-2"), config)
    before = {path.name: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feddlp.files.write_atomically", killed)
        with pytest.raises(Killed):
            run.take_back(1)
    assert {path.name: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


# Without some


def test_a_client_that_never_comes_costs_neither_the_run_nor_the_numbers(tmp_path):
    """Neither its score nor the quorum of those who are asked how they begin."""
    training = {"participation": 0.7, "rounds": 3}
    limits = {"wait": 50.0, "grace": 10.0, "deadline": 300.0, "quorum": 0.5}
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training=training, deployment=limits)
    listener = Listener()
    run = served(a_grid(tmp_path, "0-1"), config, listener)
    assert not [line for line in listener.warnings if "before round 1" in line]
    for row in rounds(run):
        assert row["test"]["client_lowest"] >= 0
    with (run.path / "clients.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["client"] for row in table} == {"0", "1"}
    assert all(int(row["test_correct"]) >= 0 for row in table)


def test_a_round_of_absent_clients_alone_is_played_by_nobody(tmp_path):
    """One of four takes part in a round, and one of them never came: the others' rounds are played."""
    training = {"participation": 0.25, "rounds": 6}
    limits = {"wait": 50.0, "grace": 10.0, "deadline": 300.0}
    data = {"clients": 4}
    config = small(methods=["local"], runs_dir=str(tmp_path), training=training, deployment=limits, data=data)
    listener = Listener()
    played = [row["participants"] for row in rounds(served(a_grid(tmp_path, "0-2"), config, listener))]
    drawn = [draw(config.seed, n, range(4), config.training)[0].nonzero().item() for n in range(6)]
    assert 3 in drawn
    assert played == [int(client < 3) for client in drawn]
    assert sum("client 3: left out: no node is there" in line for line in listener.warnings) == 1


def test_a_client_that_cannot_say_how_it_begins_is_no_end_of_the_run(tmp_path):
    grid = a_grid(tmp_path, "0", "1", "2")
    plays = grid.nodes[21].says
    grid.nodes[21].says = lambda parcel: Error(2, "broken") if parcel.facts["kind"] == "start" else plays(parcel)
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training={"participation": 0.7})
    assert [row["participants"] for row in rounds(served(grid, config))] == [2, 2, 2]


def test_a_client_that_is_late_in_the_first_round_has_no_score_yet(tmp_path):
    grid = a_grid(tmp_path, "0-1", "2")
    grid.nodes[14].script = [NEVER]
    limits = {"deadline": 100.0}
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training={"rounds": 1}, deployment=limits)
    listener = Listener()
    (row,) = rounds(served(grid, config, listener))
    assert row["participants"] == 2
    assert row["test"]["client_lowest"] >= 0
    assert listener.warnings == ["fedclip round 1: client 2: late, deployment.deadline=100 s is over"]


def test_a_round_of_which_no_report_arrives_leaves_the_server_as_it_is(tmp_path):
    """Those whose reports were to arrive are left out; those who answered were to be lost."""
    training = {"rounds": 3, "report_rate": 0.5}
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), training=training)
    grid = a_grid(tmp_path, "0", "1", "2")
    for node, client in ((7, 0), (14, 1), (21, 2)):
        reports = [bool(draw(0, number, (0, 1, 2), config.training)[1][client]) for number in range(3)]
        grid.nodes[node].script = [Error(2, "broken") if lost else grid.nodes[node].says for lost in reports]
    before = small(methods=["fedclip"], runs_dir=str(tmp_path), training={"rounds": 1, "report_rate": 0.0})
    config = config.model_copy(update={"deployment": config.deployment.model_copy(update={"quorum": 0.01})})
    found, untouched = served(grid, config), experiment.run(before, Listener())
    mine, theirs = (run.load_checkpoint("fedclip")[1] for run in (found, untouched))
    shared = [name for name in theirs if name.startswith("server/shared")]
    assert shared
    assert all(torch.equal(mine[name], theirs[name]) for name in shared)


# What is private

COPIES = ("feddat", "combined")  # keep a copy of what the server sent them


def windows(messages):
    """Every sixteen bytes that travelled."""
    return {message[at : at + 16] for message in messages for at in range(len(message) - 15)}


def pieces(value):
    """A tensor's bytes, sixteen at a time, less those that are zeros and ones, which are everybody's."""
    content = value.contiguous().view(-1).numpy().tobytes()
    found = {content[at : at + 16] for at in range(0, len(content) - 15, 16)}
    return {piece for piece in found if len(set(piece)) > 6}


def played_and_watched(method, folder):
    """The grid of a run, and what clients held after each round, by whether the method sends it: leaf -> pieces."""
    held = {True: {}, False: {}}
    upload = Cohort.upload

    def watched(self):
        sent = upload(self)
        for key, value in self.state_dict().items():
            name, kind, leaf = (*key.split("/", 2), "")[:3]
            travels = kind == "theta" and leaf in sent.get(name, {})
            if kind != "steps":
                held[travels].setdefault(key, set()).update(pieces(value.detach()))
        return sent

    grid = a_grid(folder, "0-1", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cohort, "upload", watched)
        served(grid, small(methods=[method], runs_dir=str(folder), training={"rounds": 2}))
    return grid, held[True], held[False]


@pytest.mark.parametrize("method", ["feddlp", "feddat", "local", "fedclip", "combined"])
def test_what_is_private_never_leaves(method, tmp_path):
    """No sixteen bytes of it, as it was after any round, are in any message."""
    grid, shared, private = played_and_watched(method, tmp_path)
    assert sum(map(len, private.values())) > 100
    up, down = windows(grid.up), windows(grid.down)
    travelled = up - down if method in COPIES else up | down  # what the server itself said is nobody's secret
    assert [leaf for leaf, found in private.items() if found & travelled] == []
    assert all(found & up for found in shared.values() if found)  # this test would see it


def test_no_leaf_is_named_but_those_that_are_shared(tmp_path):
    grid = a_grid(tmp_path, "0-2")
    config = small(methods=["feddlp"], runs_dir=str(tmp_path), training={"rounds": 1})
    served(grid, config)
    reports = [parcel for parcel in map(carried, grid.up) if parcel.adapters]
    assert [parcel.adapters.keys() for parcel in reports] == [set(config.build_methods()["feddlp"].shared)]
    for message in (*grid.up, *grid.down):
        assert set(carried(message).adapters) <= {"global"}
        assert b"gate" not in b"".join(to_bytes(theta) for theta in carried(message).adapters.values())


def carried(message):
    return from_record(recorddict_from_proto(RecordDict.FromString(message)))


# What is asked for


def test_a_configuration_may_be_text_a_file_or_nothing(tmp_path):
    text = small(methods=["fedclip"]).to_toml()
    (tmp_path / "run.toml").write_text(text)
    for asked in (text, str(tmp_path / "run.toml")):
        found = serving.read_configuration(asked, ["seed=7", "method.lr=0.5", "method.fedclip.lr=0.25"])
        assert (found.seed, found.methods, found.build_methods()["fedclip"].lr) == (7, ("fedclip",), 0.25)
    assert serving.read_configuration("", ["seed=3"]).seed == 3


@pytest.mark.parametrize("text", ["a = [", "x=\n]", "seed = 1\nseed = 2\n"])
def test_text_that_is_no_toml_is_one_line(text):
    with pytest.raises(UserError, match="configuration is not valid TOML"):
        serving.read_configuration(text, [])


def test_what_only_one_process_can_do_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data.newcomers=1 is for runs in one process"):
        served(FakeGrid(Time()), small(runs_dir=str(tmp_path), data={"newcomers": 1}))
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_says_so_in_its_events(tmp_path):
    config = small(methods=["fedclip"], runs_dir=str(tmp_path), deployment={"wait": 5.0})
    with pytest.raises(UserError, match="0 of 3 clients came"):
        served(FakeGrid(Time()), config)
    lines = [json.loads(line) for line in (tmp_path / config.name / "events.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "serving"
    assert lines[-1]["event"] == "failed"
    assert "0 of 3 clients came" in lines[-1]["said"][0]


def test_a_hostile_node_in_a_real_run_is_left_out_every_round(tmp_path):
    def poison(parcel):
        said = honest(parcel)
        uploads = {n: {leaf: value * torch.nan for leaf, value in theta.items()} for n, theta in said.adapters.items()}
        return Parcel(said.facts, uploads)

    grid = a_grid(tmp_path, "0-1", "2")
    honest, grid.nodes[14].script = grid.nodes[14].says, [poison] * 9
    listener = Listener()
    run = served(grid, small(methods=["fedclip"], runs_dir=str(tmp_path)), listener)
    assert [row["participants"] for row in rounds(run)] == [2, 2, 2]
    assert all("client 2: left out: " in line and "holds NaN or infinity" in line for line in listener.warnings)
    assert len(listener.warnings) == 3
    assert all(value.isfinite().all() for value in run.load_checkpoint("fedclip")[1].values())
