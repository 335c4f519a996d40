"""A question to clients: whoever is late, dead, away, busy or wrong is named, and the round goes on without."""

from __future__ import annotations

import math

import pytest
import torch
from flwr.app import ConfigRecord, Error, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fakegrid import NEVER, FakeGrid, FakeNode, Listener, Time, passing, small
from feddlp.errors import UserError
from feddlp.federation.aggregation import capped
from feddlp.federation.flower import bindings, limits, registry
from feddlp.federation.flower.checks import check_begun
from feddlp.federation.flower.inquiry import BUSY, REMINDER, Inquiry, Question, gather, least, named
from feddlp.federation.flower.nodes import REPEAT, Nodes
from feddlp.federation.flower.parcels import Parcel
from feddlp.federation.flower.post import Post
from feddlp.federation.flower.registry import Registry
from feddlp.federation.flower.remote import RemoteClients
from feddlp.federation.host import Lane
from feddlp.federation.rounds import Federation

CRASHED, GONE = Error(8, "killed"), Error(5, "gone")
CLIENTS = 4
HELLO = {
    "checkpoint": "clip", "data": "photos", "class_names": ["cat", "dog"], "template": "{}", "dtype": "float32",
    "sites": {"image.features": ["FeatureSite", 4]}, "left_out": 0,
}  # fmt: skip


def holding(*clients, state="", delay=1.0, script=(), **changes):
    """A node that answers right, as far as the server can see."""
    hello = {
        **HELLO,
        "name": f"n{clients[0]}",
        "state": state or f"state-{clients[0]}",
        "clients": list(clients),
        "samples": {part: [10] * len(clients) for part in ("train", "validation", "test")},
    }

    def says(parcel):
        if parcel.facts["kind"] == "hello":
            return Parcel({"node": "n", **hello, **changes})
        asked = parcel.facts["clients"]
        correct = {part: [client + 1 for client in asked] for part in ("validation", "test")}
        return Parcel({"method": parcel.facts["method"], "clients": asked, "correct": correct})

    return FakeNode(says, delay, list(script))


class Scene:
    """Nodes on a grid and a server that asks them."""

    def __init__(self, folder, nodes, clients=CLIENTS, partition="iid", methods="feddlp", **limits):
        self.time, self.said = Time(), Listener()
        limits = {"deadline": 1000.0, "grace": 90.0, "wait": 500.0, **limits}
        self.config = small(methods=methods, data={"clients": clients, "partition": partition}, deployment=limits)
        self.grid = FakeGrid(self.time, dict(enumerate(nodes, 1)))
        self.open(folder)

    def open(self, folder):
        self.registry = Registry.open(folder, self.config)
        post, hello = Post(self.grid, 1e6), Parcel({"kind": "hello"})
        self.nodes = Nodes(post, self.registry, hello, self.config.data.clients, self.said, self.time.clock)

    def gather(self, sleep=None):
        gather(self.nodes, self.config.deployment, sleep or self.time.sleep)

    def ask(self, clients=range(CLIENTS), subject="the question", sleep=None, **changes):
        question = Question(
            subject=subject,
            put=lambda some: Parcel({"kind": "start", "method": "feddlp", "clients": list(some)}),
            accept=lambda parcel, some: check_begun(parcel, some, "feddlp", self.nodes.roster)[0].rows.tolist(),
            most_bytes=lambda some: 0,
            **{"quorum": self.config.deployment.quorum, **changes},
        )
        limits, sleep = self.config.deployment, sleep or self.time.sleep
        answers = Inquiry(self.nodes, limits, question, set(clients), sleep=sleep).answered()
        return sorted(client for answer in answers for client in answer)

    @property
    def warnings(self):
        return self.said.warnings


@pytest.fixture
def scene(tmp_path):
    def make(*nodes, **options):
        made = Scene(tmp_path, nodes, **options)
        made.gather()
        return made

    return make


# All goes well


@pytest.mark.parametrize(
    ("theirs", "union"),
    [
        ((["9", "10"], ["2", "1"]), ["1", "2", "9", "10"]),
        ((["9", "10"], ["x", "1"]), ["1", "10", "9", "x"]),
        ((["cafe\u0301", "tea"], ["caf\u00e9", "milk"]), ["caf\u00e9", "milk", "tea"]),
    ],
)
def test_the_classes_of_all_sites_are_as_one_process_has_them(scene, theirs, union):
    found = scene(*(holding(c, class_names=names) for c, names in enumerate(theirs)), clients=2, partition="natural")
    assert found.registry.class_names == union


def test_all_answer_and_nothing_is_said(scene):
    found = scene(holding(0, 1), holding(2), holding(3))
    assert found.ask() == [0, 1, 2, 3]
    assert found.warnings == []
    assert [len(node.orders) for node in found.grid.nodes.values()] == [1, 1, 1]


def test_only_those_are_asked_who_are_meant(scene):
    found = scene(holding(0, 1), holding(2, 3))
    assert found.ask([1]) == [1]
    assert [node.orders[0].facts["clients"] for node in found.grid.nodes.values() if node.orders] == [[1]]


def test_nobody_is_asked_and_nobody_answers(scene):
    assert scene(holding(*range(CLIENTS))).ask([]) == []


@pytest.mark.parametrize(
    ("quorum", "asked", "expected"), [(0.5, 4, 2), (0.5, 5, 3), (0.1, 10, 1), (0.7, 10, 7), (1, 3, 3)]
)
def test_a_quorum_is_rounded_up_and_rounding_errors_are_not(quorum, asked, expected):
    assert least(quorum, asked) == expected


def test_clients_are_named_in_short():
    assert named([3]) == "client 3"
    assert named({7, 1, 2}) == "clients 1-2, 7"


# Late


def test_who_is_late_is_named_left_alone_while_at_work_and_its_late_answer_is_ignored(scene):
    found = scene(holding(0, 1, 2), holding(3))
    slow = found.grid.nodes[2]
    slow.delay = 2500.0
    assert found.ask(subject="round 1") == [0, 1, 2]
    assert found.warnings == ["round 1: client 3: late, deployment.deadline=1000 s is over"]
    assert found.ask(subject="round 2") == [0, 1, 2]
    assert len(slow.orders) == 1
    slow.delay = 1.0
    assert found.ask(subject="round 3") == [0, 1, 2, 3]
    assert "client 3: the answer to round 1 came too late" in found.said.notes
    assert len(slow.orders) == 2


# Dead


def test_a_process_that_died_is_replaced(scene):
    found = scene(holding(0, 1, 2), holding(3, script=[CRASHED, CRASHED]))
    assert found.ask() == [0, 1, 2, 3]
    assert found.warnings == ["the question: client 3: its process died; asked again"] * 2


def test_a_process_that_keeps_dying_is_left_out_by_name(scene):
    found = scene(holding(0, 1, 2), holding(3, script=[CRASHED] * 9), attempts=2)
    assert found.ask() == [0, 1, 2]
    assert found.warnings[-1] == "the question: client 3: left out: its process died"
    assert len(found.grid.nodes[2].orders) == 2
    found.grid.nodes[2].script.clear()
    assert found.ask(subject="the next") == [0, 1, 2, 3]


def test_an_app_that_failed_is_left_out_with_its_words_on_one_line(scene):
    found = scene(holding(0, 1, 2), holding(3, script=[Error(2, "Trace\n\x1b[31mback\u202e" + "x" * 999)]))
    assert found.ask() == [0, 1, 2]
    (line,) = found.warnings
    assert line.startswith(r"the question: client 3: left out: its app failed: Trace \x1b[31mback\u202exx")
    assert line.isprintable()
    assert len(line) < 400


def test_a_reply_that_cannot_be_unpacked_holds_nobody_up(scene):
    found = scene(holding(0, 1), holding(2, script=[ValueError("damaged")]), holding(3))
    assert found.ask() == [0, 1, 3]
    assert found.warnings == ["the question: client 2: left out: its reply cannot be unpacked: ValueError: damaged"]


# Away


def gone_at(scene, when, node, back_at=math.inf):
    """Sleep, during which a node goes away and may come back under another id."""
    start, away = scene.time.now, []

    def sleep(seconds):
        scene.time.sleep(seconds)
        if scene.time.now - start >= when and node in scene.grid.nodes:
            away.append(scene.grid.leaves(node))
        if scene.time.now - start >= back_at and away:
            scene.grid.nodes[node + 100] = away[0]
            away.clear()

    return sleep


def test_a_node_that_comes_back_with_its_state_is_asked_again_and_counts(scene):
    found = scene(holding(0, 1, 2), holding(3, delay=10.0))
    assert found.ask(sleep=gone_at(found, 5, 2, back_at=40)) == [0, 1, 2, 3]
    assert found.warnings == ["node 'n3' (clients 3) went away"]
    assert len(found.grid.nodes[102].orders) == 2


def test_flower_says_that_a_node_went_away(scene):
    found = scene(holding(0, 1, 2), holding(3, script=[GONE]))
    assert found.ask() == [0, 1, 2, 3]
    assert found.warnings == ["node 'n3' (clients 3) went away"]


def test_a_node_that_stays_away_is_left_out_after_the_grace(scene):
    found = scene(holding(0, 1, 2), holding(3, delay=10.0))
    began = found.time.now
    assert found.ask(sleep=gone_at(found, 5, 2)) == [0, 1, 2]
    assert found.warnings[-1] == "the question: client 3: left out: no node has been there for 90 s"
    assert 90 < found.time.now - began < 110
    began = found.time.now
    assert found.ask() == [0, 1, 2]
    assert found.time.now - began < 5


def test_where_the_quorum_would_be_lost_a_node_has_until_the_deadline(scene):
    found = scene(holding(0), holding(1, 2, 3, delay=10.0))
    assert found.ask(sleep=gone_at(found, 5, 2, back_at=900)) == [0, 1, 2, 3]


def test_a_quorum_that_is_not_met_ends_the_run_with_numbers(scene):
    found = scene(holding(0), holding(1, 2, 3, delay=10.0), quorum=0.75)
    began = found.time.now
    with pytest.raises(UserError, match=r"the question: 1 of 4 clients answered, deployment.quorum=0.75 asks for 3; "):
        found.ask(sleep=gone_at(found, 5, 2))
    assert found.warnings[-1] == "the question: clients 1-3: late, deployment.deadline=1000 s is over"
    assert 1000 <= found.time.now - began < 1002


def test_a_question_that_needs_nobody_is_soon_over(scene):
    found = scene(holding(0), holding(1, 2, 3, delay=10.0))
    assert found.ask(sleep=gone_at(found, 5, 2), quorum=0.0) == [0]


# Busy


def busy(parcel):
    return Parcel({"problem": "in use by another process", "busy": True})


def test_a_busy_node_is_asked_again_later_and_that_is_no_try(scene):
    found = scene(holding(0, 1, 2), holding(3, script=[busy] * 5), attempts=1)
    began = found.time.now
    assert found.ask() == [0, 1, 2, 3]
    assert found.time.now - began >= 5 * BUSY
    assert found.warnings == []
    assert len(found.grid.nodes[2].orders) == 6


# Wrong


WRONG = [
    (lambda parcel: Parcel({"problem": "state-dir:\n full\x07"}), "state-dir: full"),
    (lambda parcel: Parcel({"problem": [["x"]] * 10**5}), "[['x'], ['x']"),
    (lambda parcel: Parcel({"method": "flora"}), "it is of method 'flora', not of 'feddlp'"),
    (lambda parcel: RecordDict({"x": ConfigRecord({})}), "it holds x in place of facts and adapters"),
    (lambda parcel: Parcel({}, {"x": {"y": torch.ones(10**5)}}), "400,072 bytes, 0 at most are expected"),
]


@pytest.mark.parametrize(("says", "line"), WRONG)
def test_a_wrong_answer_is_left_out_with_a_line_and_the_round_goes_on(says, line, scene):
    found = scene(holding(0, 1, 2), holding(3, script=[says]))
    assert found.ask() == [0, 1, 2]
    (warning,) = found.warnings
    assert warning.startswith("the question: client 3: left out: ")
    assert line in warning
    assert warning.isprintable()
    assert len(warning) < 400
    assert found.ask(subject="the next") == [0, 1, 2, 3]


def test_the_good_answers_of_others_are_not_lost_with_it(scene):
    found = scene(holding(0, 1, script=[WRONG[2][0]]), holding(2, 3), quorum=0.5)
    assert found.ask() == [2, 3]
    found.grid.nodes[1].script.append(WRONG[2][0])
    with pytest.raises(UserError, match=r"2 of 4 clients answered, deployment.quorum=0.75"):
        found.ask(subject="the next", quorum=0.75)


# Before the first round


def test_who_is_missing_is_named_once_after_30_seconds(tmp_path):
    found = Scene(tmp_path, [holding(0), holding(2, 3)])
    began, named_at = found.time.now, []

    def sleep(seconds):
        if not named_at and any(note.startswith("waiting") for note in found.said.notes):
            named_at.append(found.time.now - began)
        found.time.sleep(seconds)

    found.gather(sleep)
    assert named_at == [REMINDER]
    assert 500 <= found.time.now - began < 502
    assert [note for note in found.said.notes if note.startswith("waiting")] == ["waiting for client 1"]
    assert found.warnings == ["client 1 did not come; the federation begins without: 1 absent (client 1)"]


def test_who_is_missing_is_named_again_when_that_has_changed(tmp_path):
    found = Scene(tmp_path, [holding(0)])
    began = found.time.now

    def sleep(seconds):
        found.time.sleep(seconds)
        if found.time.now - began > 3 * REMINDER:
            found.grid.nodes[9] = found.grid.nodes.get(9, late)

    late = holding(2, 3)
    found.gather(sleep)
    assert [note for note in found.said.notes if note.startswith("waiting")] == [
        "waiting for clients 1-3", "waiting for client 1",
    ]  # fmt: skip


def test_without_a_quorum_there_is_no_beginning(tmp_path):
    found = Scene(tmp_path, [holding(2)])
    line = r"1 of 4 clients came within deployment.wait=500 s, .*=0.5 asks for 2; missing: 3 absent \(clients 0-1, 3\);"
    with pytest.raises(UserError, match=line):
        found.gather()


def test_who_comes_late_is_welcome(tmp_path):
    found = Scene(tmp_path, [holding(0, 1, 2)])
    began = found.time.now

    def sleep(seconds):
        found.time.sleep(seconds)
        if found.time.now - began > 100:
            found.grid.nodes[9] = found.grid.nodes.get(9, late)

    late = holding(3)
    found.gather(sleep)
    assert 100 < found.time.now - began < 110
    assert found.ask() == [0, 1, 2, 3]


def test_a_node_that_comes_in_the_middle_of_a_run_is_asked_from_then_on(scene):
    found = scene(holding(0, 1, 2))
    assert found.ask() == [0, 1, 2]
    found.grid.nodes[9] = holding(3)
    assert found.ask(subject="while it says hello") == [0, 1, 2]
    assert found.ask(subject="the next") == [0, 1, 2, 3]


def test_who_was_refused_is_not_called_absent(tmp_path):
    found = Scene(tmp_path, [holding(0, problem="no checkpoint"), holding(1, clients=[1, 9], problem="no state-dir")])
    line = r"0 of 4 clients .* missing: 2 refused \('n': no checkpoint; 'n': no state-dir\), 2 absent \(clients 2-3\);"
    with pytest.raises(UserError, match=line):
        found.gather()


@pytest.mark.parametrize("claimed", ["0-3", {"0": 1}, 3, [[0]], None])
def test_a_refused_node_that_names_its_clients_otherwise_names_none(claimed, tmp_path):
    found = Scene(tmp_path, [holding(0, clients=claimed, problem="no checkpoint")])
    with pytest.raises(UserError, match=r"missing: 4 absent \(clients 0-3\)"):
        found.gather()


# Who is not taken


def refusals(found):
    return [line for line in found.warnings if line.startswith("a node is not taken")]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"checkpoint": "other"}, "its checkpoint is not that of the federation; give every node the same checkpoint"),
        ({"template": "a {}"}, "its template is not that"),
        ({"dtype": "bfloat16"}, "its dtype is not that"),
        ({"sites": {}}, "its sites is not that"),
        ({"data": "others"}, "its data set is not that of the other nodes, and data.partition deals out one for all"),
        ({"clients": [7]}, "clients [7] are repeated, or none of 0-3"),
        ({"problem": "no\nstate-dir"}, "'n': no state-dir"),
        ({"protocol": 9}, "it speaks protocol 9, not 1"),
    ],
)
def test_a_node_that_does_not_fit_is_refused_once_and_asked_again(changes, line, tmp_path):
    found = Scene(tmp_path, [holding(0, 1, 2), holding(3, **changes)])
    found.gather()
    (refusal,) = refusals(found)
    assert line in refusal
    assert refusal.isprintable()
    assert len(found.grid.nodes[2].heard) == pytest.approx(500 / REPEAT, abs=1)
    assert [parcel.facts.get("refused") for parcel in found.grid.nodes[2].heard[:2]] == [
        None,
        refusal.partition(": ")[2],
    ]
    found.grid.nodes[2].says = holding(3).says
    found.time.sleep(REPEAT)
    assert found.ask() == [0, 1, 2, 3] or found.ask(subject="the next") == [0, 1, 2, 3]
    assert found.nodes.refused == {}


SAMPLES = {part: [10] * 4 for part in ("train", "validation", "test")}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"samples": {**SAMPLES, "train": [10, 51, 10, 10]}},
            "one has 51 train samples, more than deployment.max_samples=50",
        ),
        (
            {"samples": {**SAMPLES, "test": [2**53 - 1, 1, 1, 1]}},
            "9007199254740991 test samples, more than deployment.",
        ),
        ({"totals": {"train": 39, "validation": 40, "test": 40}}, "with it clients have more train samples than are"),
        ({"totals": {"train": 40, "validation": 40}}, "with it clients have more test samples than are dealt out"),
        ({"sites": {"a": ["LinearSite", 4, 2**20], "b": ["LinearSite", 2**20, 4]}}, "too many for the server's memory"),
    ],
)
def test_numbers_that_cannot_be_or_would_not_fit_are_refused(changes, line, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "free_bytes", lambda device: 2 * limits.PARAMETER * 2 * (2 * (2**20 + 4)) - 1)
    found = Scene(tmp_path, [holding(0, 1, 2, 3, **changes)], wait=2.0, quorum=0.1, max_samples=50, methods="flora")
    with pytest.raises(UserError, match="0 of 4 clients came"):
        found.gather()
    assert line in refusals(found)[0]
    assert found.registry.members == {}


def test_all_nodes_together_have_no_more_samples_than_are_dealt_out(tmp_path):
    totals = {"train": 39, "validation": 40, "test": 40}
    nodes = [holding(0, 1, totals=totals), holding(2, 3, totals=totals), holding(2, totals={**totals, "train": 99})]
    found = Scene(tmp_path, nodes, wait=2.0, quorum=0.1)
    found.gather()
    assert refusals(found) == [
        "a node is not taken: with it clients have more train samples than are dealt out to all",
        "a node is not taken: its totals is not that of the federation; give every node the same checkpoint and data",
    ]


def test_a_node_claims_the_clients_of_its_key_alone(tmp_path):
    bindings.bind(tmp_path, "1", (0, 1))
    bindings.bind(tmp_path, "2", (2,))
    found = Scene(tmp_path, [holding(0, 1), holding(2, 3)], wait=2.0, quorum=0.1)
    found.nodes.bindings = str(tmp_path / bindings.FILE)
    found.gather()
    assert [home.clients for home in found.nodes.homes.values()] == [(0, 1)]
    assert "its key is not registered for client 3; register it again with the right --clients" in refusals(found)[0]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.floats(0.05, 1))
def test_a_capped_share_holds_and_touches_no_more_than_it_must(samples, share):
    weights = torch.tensor(samples)
    found = capped(weights, share)
    if len(samples) < 3 or max(samples) <= share * sum(samples):
        assert found.tolist() == pytest.approx(samples)
    elif share * len(samples) <= 1:
        assert found.max().item() == pytest.approx(found.min().item())
    else:
        assert found.max().item() == pytest.approx(share * found.sum().item())
        assert all(now == before or now == found.max() for now, before in zip(found.tolist(), samples, strict=True))


def test_two_nodes_with_the_same_clients_are_not_both_taken(tmp_path):
    found = Scene(tmp_path, [holding(0, 1), holding(1, 2, state="other"), holding(3)])
    found.gather()
    assert refusals(found) == [
        "a node is not taken: node 'n1' (clients 1-2) has clients that are at home on node 'n0' (clients 0-1); "
        "stop one of the two"
    ]
    assert found.ask() == [0, 1, 3]


def test_two_nodes_with_the_same_state_folder_are_not_both_taken(tmp_path):
    found = Scene(tmp_path, [holding(0, 1, state="s"), holding(2, 3, state="s")])
    found.gather()
    assert refusals(found) == [
        "a node is not taken: node 'n2' (clients 2-3) has the state-dir of node 'n0' (clients 0-1); "
        "give every node one of its own"
    ]


def test_a_node_that_starts_again_before_the_old_one_is_gone_takes_its_place(scene):
    found = scene(holding(0, 1, 2), holding(3))
    found.nodes.lose(found.nodes.homes[2])  # as when Flower says so
    found.grid.nodes[9] = holding(3)
    assert found.ask() == [0, 1, 2, 3]
    assert len(found.nodes.homes) == 2


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_other_images_than_when_the_run_began_are_refused(part, tmp_path):
    found = Scene(tmp_path, [holding(0, 1, 2), holding(3)])
    found.gather()
    other = {"samples": {name: [11 if name == part else 10] for name in ("train", "validation", "test")}}
    found.grid.nodes[2] = holding(3, **other)
    found.open(tmp_path)
    found.gather()
    assert refusals(found) == ["a node is not taken: client 3 has other images than when the run began; put them back"]
    assert found.nodes.roster.train.tolist() == [10] * CLIENTS  # as they were


def test_a_class_that_nobody_has_is_refused_once_the_run_has_begun(tmp_path):
    found = Scene(tmp_path, [holding(0, 1), holding(2, class_names=["emu", "cat"])], partition="natural")
    found.gather()
    found.registry.close()
    assert found.registry.class_names == ["cat", "dog", "emu"]
    found.grid.nodes[9] = holding(3, class_names=["yak", "dog"])
    found.ask()
    assert refusals(found) == ["a node is not taken: it has classes that the run did not begin with: yak"]


@pytest.mark.parametrize("reply", [CRASHED, NEVER, Error(1, "no app"), ValueError("damaged")])
def test_a_node_that_cannot_say_hello_holds_nobody_up(reply, tmp_path):
    found = Scene(tmp_path, [holding(0, 1, 2), FakeNode(lambda parcel: reply)])
    found.gather()
    assert found.ask() == [0, 1, 2]
    assert len(refusals(found)) == (reply is not NEVER)


# The order of arrival


def trained(parcel):
    """A report of one client, different from those of all others."""
    (client,) = parcel.facts["clients"]
    noise = 1e-31 * (1e30, 1.0, -1e30, 3.0)[client]  # whose sum is 4e-31 or anything less
    adapters = parcel.adapters.items()
    sent = {name: {leaf: value[None] + noise for leaf, value in theta.items()} for name, theta in adapters}
    facts = {
        "method": "fedclip", "round": parcel.facts["round"], "clients": [client], "active": {}, "diagnostics": {},
        "correct": {part: [client] for part in ("validation", "test")}, "bytes_up": [1], "bytes_down": [1],
        "losses": {name: [0.1 * client] for name in sent}, "seconds": 1.0,
    }  # fmt: skip
    return Parcel(facts, sent)


def played(order, folder):
    """A round in which the clients answer in some order."""
    folder.mkdir()
    sites = {"image.features": ["FeatureSite", 96]}
    nodes = [holding(client, delay=1.0 + place, script=[trained], sites=sites) for place, client in enumerate(order)]
    found = Scene(folder, nodes, methods="fedclip")
    found.gather()
    method = found.config.build_methods()["fedclip"]
    with passing(found.time):
        clients = RemoteClients(found.nodes, found.config, "fedclip", {"experiment": "x"})
        federation = Federation([Lane(0, method)], clients, found.config.training)
        (result,) = federation.play_round()
    return federation.state_dict(0), result


def test_the_order_in_which_reports_arrive_changes_nothing(tmp_path):
    """To the bit: a sum of floating-point numbers depends on their order."""
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2), (0, 3, 2, 1), (3, 0, 1, 2)]
    states, results = zip(*(played(order, tmp_path / str(order)) for order in orders), strict=True)
    for state, result in zip(states, results, strict=True):
        assert all(torch.equal(state[key], states[0][key]) for key in state)
        assert all(torch.equal(loss, results[0].losses[key]) for key, loss in result.losses.items())
        assert result.test_correct.tolist() == [0, 1, 2, 3]
