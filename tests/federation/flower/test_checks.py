"""Nothing that a node sends reaches the server's averages unless it is what it should be."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from dataclasses import replace

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from feddlp.federation.flower import limits
from feddlp.federation.flower.checks import Expected, check_begun, check_report, one_line, parse_hello
from feddlp.federation.flower.parcels import Parcel, RefusedError, from_record, to_record
from feddlp.federation.host import Roster

CLIENTS = 5
ROSTER = Roster(tuple(range(CLIENTS)), *(torch.tensor([9, 8, 7, 6, 5]) for _ in range(3)))
SHARED = {"global": {"a.A": torch.ones(2, 3), "a.B": torch.zeros(4, 2)}, "head": {"w": torch.ones(5)}}
EXPECTED = Expected("feddlp", 3, SHARED, ("global", "head", "local"), {"local/a": 2}, ROSTER)
ASKED = (1, 3)


def report(whose=ASKED, /, **changes):
    """A good one; changes by dotted key, ... takes a key away."""
    count = len(whose)
    facts = {
        "method": "feddlp", "round": 3, "clients": list(whose), "losses": {"local": [0.5] * count},
        "diagnostics": {"received": [4] * count}, "correct": {"validation": [3] * count, "test": [5] * count},
        "active": {"local/a": [2] * count}, "bytes_down": [40] * count, "bytes_up": [40] * count, "seconds": 1.5,
    }  # fmt: skip
    for path, value in changes.items():
        *outer, last = path.split("__")
        table = facts
        for key in outer:
            table = table[key]
        if value is ...:
            del table[last]
        else:
            table[last] = value
    return facts


def uploads(clients=ASKED, shared=SHARED):
    return {
        name: {leaf: value.expand(len(clients), *value.shape).clone() for leaf, value in theta.items()}
        for name, theta in shared.items()
    }


def checked(facts=None, adapters=None, expected=EXPECTED, asked=ASKED):
    """As it is done with what comes over the wire."""
    record = to_record(Parcel(report() if facts is None else facts, uploads() if adapters is None else adapters))
    return check_report(from_record(record, expected.most_bytes(len(asked))), asked, expected)


def refused(*args, **options):
    with pytest.raises(RefusedError) as caught:
        checked(*args, **options)
    return one_line(caught.value)


# Good ones


@given(st.permutations(range(CLIENTS)), st.integers(1, CLIENTS), st.data())
def test_a_good_report_passes_as_it_is(order, count, data):
    clients = order[:count]
    most = ROSTER.test[list(clients)].tolist()
    counts = [data.draw(st.integers(0, limit)) for limit in most]
    finite = st.floats(allow_infinity=False, allow_nan=False, width=32)
    losses = [data.draw(st.floats(-(2.0**99), 2.0**99, width=32)) for _ in clients]
    adapters = uploads(clients)
    adapters["head"]["w"][0, 0] = data.draw(finite)
    facts = report(clients, correct__test=counts, diagnostics={"received": counts}, losses__local=losses)
    found, sent = checked(facts, adapters, asked=sorted(clients))
    assert found.rows.tolist() == list(clients)
    assert found.correct["test"].tolist() == counts
    assert torch.equal(found.losses["local"], torch.tensor(losses))
    assert found.losses["local"].dtype == torch.float32
    assert all(torch.equal(sent[name][leaf], adapters[name][leaf]) for name in adapters for leaf in adapters[name])


def test_a_method_that_shares_nothing_sends_nothing():
    expected = replace(EXPECTED, shared={}, adapters=("local",))
    assert checked(adapters={}, expected=expected).uploads == {}
    assert "0 at most are expected" in refused(adapters={"head": {"w": torch.ones(2, 5)}}, expected=expected)
    with pytest.raises(RefusedError, match="the unknown 'head'"):
        check_report(Parcel(report(), {"head": {"w": torch.ones(2, 5)}}), ASKED, expected)


# Tensors


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_no_nan_and_no_infinity(value, place):
    adapters = uploads()
    adapters["global"]["a.B"].view(-1)[place] = value
    assert refused(adapters=adapters) == "global/a.B holds NaN or infinity"


@pytest.mark.parametrize(
    "shape", [(2, 3, 4), (1, 4, 2), (3, 4, 2), (4, 2), (2, 8), (2, 4, 2, 1), (2, 2, 4), (0, 4, 2), (2, 4, 0), (), (16,)]
)
def test_no_other_shape(shape):
    adapters = uploads()
    adapters["global"]["a.B"] = torch.zeros(shape)
    assert f"global/a.B has the shape {shape}, not (2, 4, 2)" in refused(adapters=adapters)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int8, torch.bool])
def test_no_other_dtype(dtype):
    adapters = uploads()
    adapters["head"]["w"] = adapters["head"]["w"].to(dtype)
    assert refused(adapters=adapters) == f"head/w is of {dtype}, not torch.float32"


def test_no_missing_and_no_further_leaf_or_adapter():
    missing, extra, lacks, more = uploads(), uploads(), uploads(), uploads()
    del missing["global"]["a.A"]
    extra["global"]["gate"] = torch.ones(2, 2)
    del lacks["head"]
    more["local"] = {"w": torch.ones(2, 5)}
    assert refused(adapters=missing) == "adapter global lacks 'a.A'"
    assert refused(adapters=extra) == "adapter global has the unknown 'gate'"
    assert refused(adapters=lacks) == "adapters lacks 'head'"
    assert refused(adapters=more) == "adapters has the unknown 'local'"
    renamed = {**uploads(), "head": {"v": torch.ones(2, 5)}}
    assert refused(adapters=renamed) == "adapter head has the unknown 'v' and lacks 'w'"


def test_nobody_sends_more_than_there_is_to_send():
    more = {**uploads(), "head": {"w": torch.ones(2, 100_000)}}
    assert "at most are expected" in refused(adapters=more)


# Facts


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"round": 2}, "it is of round 2, not of 3: a replay"),
        ({"round": 4}, "it is of round 4"),
        ({"round": None}, "it is of round None"),
        ({"round": "3"}, "it is of round '3'"),
        ({"method": "flora"}, "it is of method 'flora', not of 'feddlp'"),
        ({"clients": [1]}, "it is of clients [1], asked were [1, 3]"),
        ({"clients": [1, 1]}, "it is of clients [1, 1]"),
        ({"clients": [1, 4]}, "it is of clients [1, 4]"),
        ({"clients": [1, 3, 4]}, "it is of clients [1, 3, 4]"),
        ({"clients": [1, 99]}, "it is of clients [1, 99]"),
        ({"clients": [1, -1]}, "at clients.1"),
        ({"clients": []}, "at clients"),
        ({"clients": [1, True]}, "at clients.1"),
        ({"clients": [1, 3.0]}, "at clients.1"),
        ({"clients": "13"}, "at clients"),
        ({"clients": ...}, "at clients"),
        ({"correct__test": [9, 6]}, "correct.test counts [9, 6], at most [8, 6] can be"),
        ({"correct__validation": [0, 7]}, "correct.validation counts"),
        ({"correct__test": [-1, 0]}, "at correct.test.0"),
        ({"correct__test": [1.5, 0]}, "at correct.test.0"),
        ({"correct__test": [1]}, "correct.test has 1 values for 2 clients"),
        ({"correct__test": [1, 1, 1]}, "correct.test has 3 values for 2 clients"),
        ({"correct__test": ...}, "it scores validation in place of validation and test"),
        ({"correct__train": [1, 1]}, "at correct.train"),
        ({"correct": {}}, "it scores nothing"),
        ({"correct": [1, 1]}, "at correct"),
        ({"seconds": "9" * 10_000}, "at seconds"),
        ({"seconds": [1.0]}, "at seconds"),
        ({"seconds": math.nan}, "at seconds"),
        ({"seconds": math.inf}, "at seconds"),
        ({"seconds": -1.0}, "at seconds"),
        ({"seconds": 1e10}, "at seconds"),
        ({"losses__local": [math.nan, 0.0]}, "at losses.local.0"),
        ({"losses__local": [0.0, 1e39]}, "at losses.local.1"),
        ({"diagnostics__received": [9, 0]}, "diagnostics.received counts"),
        ({"diagnostics__received": [0]}, "diagnostics.received has 1 values"),
        ({"diagnostics": {str(way): [0, 0] for way in range(101)}}, "at diagnostics"),
        ({"diagnostics": {"x" * 2000: [0, 0]}}, "at diagnostics"),
        ({"losses__local": [1.0]}, "losses.local has 1 values"),
        ({"losses__local": ["1", "2"]}, "at losses.local.0"),
        ({"losses__other": [1.0, 1.0]}, "it has a loss of the unknown adapter 'other'"),
        ({"active": {}}, "it counts gates at 0 sites, 1 have some"),
        ({"active__extra": [1, 1]}, "it counts gates at 2 sites, 1 have some"),
        ({"active": {"local/b": [1, 1]}}, "it counts gates at 1 sites"),
        ({"active__local/a": [3, 0]}, "active.local/a counts [3, 0], at most [2, 2] can be"),
        ({"active__local/a": [1]}, "active.local/a has 1 values"),
        ({"bytes_up": [1]}, "bytes_up has 1 values"),
        ({"bytes_down": [2**53, 0]}, "at bytes_down.0"),
        ({"bytes_down": [10**400, 0]}, "at bytes_down.0"),
        ({"bytes_down": None}, "at bytes_down"),
        ({"seconds": "long"}, "at seconds"),
        ({"seconds": ...}, "at seconds"),
    ],
)
def test_facts_that_cannot_be_are_named(changes, line):
    assert line in refused(report(**changes))


def test_a_list_without_end_is_one_short_line():
    for changes in ({"clients": list(range(10**5))}, {"correct__test": ["x"] * 10**5}, {"round": [0] * 10**5}):
        assert len(refused(report(**changes))) < 400


# The start


BEGUN = {"method": "feddlp", "clients": [3, 0, 1], "correct": {"validation": [1, 2, 3], "test": [4, 5, 6]}}


def test_the_start_is_that_of_those_who_were_asked():
    wave, correct = check_begun(Parcel(BEGUN), (1, 3), "feddlp", ROSTER)
    assert wave.rows.tolist() == [1, 3]
    assert {part: hits.tolist() for part, hits in correct.items()} == {"validation": [3, 1], "test": [6, 4]}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"method": "flora"}, "of method 'flora'"),
        ({"clients": [3, 0, 0]}, "are repeated, or none of 0-4"),
        ({"clients": [3, 1, 7]}, "are repeated, or none of 0-4"),
        ({"clients": [3, 0, 2]}, "asked were [1, 3]"),
        ({"correct": {"validation": [1, 2, 3], "test": [4, 5]}}, "correct.test has 2 values for 3 clients"),
        ({"correct": {"validation": [1, 2, 3], "test": [7, 0, 0]}}, "correct.test counts"),
        ({"correct": {"test": [1, 2, 3]}}, "it scores test in place of"),
        ({"correct": None}, "at correct"),
        ({"seconds": "9" * 10_000}, "at seconds"),
    ],
)
def test_a_start_that_cannot_be_is_named(changes, line):
    with pytest.raises(RefusedError) as caught:
        check_begun(Parcel({**BEGUN, **changes}), (1, 3), "feddlp", ROSTER)
    assert line in str(caught.value)


# Who comes

HELLO = {
    "name": "ward", "state": "s", "clients": [1, 3], "checkpoint": "c", "data": "d", "class_names": ["a", "b"],
    "samples": {"train": [1, 2], "validation": [0, 0], "test": [3, 4]}, "template": "{}", "dtype": "float32",
    "sites": {"x": ["LinearSite", 3, 4], "f": ["FeatureSite", 7], "w": ["WeightSite", [2, 3]]}, "left_out": 0,
}  # fmt: skip


def test_a_good_hello_passes():
    hello = parse_hello(json.loads(json.dumps({**HELLO, "kind": "hello"})), CLIENTS)
    assert (hello.name, hello.clients, hello.classes) == ("ward", [1, 3], None)


def test_class_names_are_taken_in_nfc():
    names = {"class_names": ["cafe\u0301", "b"], "classes": [{"train": {"cafe\u0301": 1}, "test": {"b": 3}}, HELD[1]]}
    names["classes"][1] = {"train": {"b": 2}, "test": {"cafe\u0301": 4}}
    hello = parse_hello({**HELLO, **names}, CLIENTS)
    assert hello.class_names == ["caf\u00e9", "b"]
    assert [list(held["train"]) for held in hello.classes] == [["caf\u00e9"], ["b"]]


HELD = [{"train": {"a": 1}, "test": {"b": 3}}, {"train": {"a": 1, "b": 1}, "test": {"a": 4}}]


def test_classes_that_add_up_pass():
    assert parse_hello({**HELLO, "classes": HELD}, CLIENTS).classes == HELD


@pytest.mark.parametrize(
    "change",
    [{"train": {"a": 2}}, {"train": {"c": 1}}, {"test": {}}, {"validation": {"a": 1}}, {"train": {"a": -1, "b": 2}}],
)
def test_classes_that_do_not_add_up_are_refused(change):
    with pytest.raises(RefusedError, match=r"client 1 and their classes do not agree|at classes\.0"):
        parse_hello({**HELLO, "classes": [{**HELD[0], **change}, HELD[1]]}, CLIENTS)
    with pytest.raises(RefusedError, match="classes has 1 values for 2 clients"):
        parse_hello({**HELLO, "classes": HELD[:1]}, CLIENTS)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"clients": [1, 1]}, "are repeated"),
        ({"clients": [1, 5]}, "none of 0-4"),
        ({"clients": []}, "at clients"),
        ({"clients": [1]}, "samples.train has 2 values for 1 clients"),
        ({"samples": {**HELLO["samples"], "test": [3]}}, "samples.test has 1 values"),
        ({"samples": {**HELLO["samples"], "test": [3, -4]}}, "at samples.test.1"),
        ({"samples": {"train": [1, 2]}}, "at samples.validation"),
        ({"dtype": "int8"}, "at dtype"),
        ({"dtype": "load"}, "at dtype"),
        ({"name": "x" * 1001}, "at name"),
        ({"name": "\ud800"}, "at name"),
        ({"name": ["x"]}, "at name"),
        ({"class_names": [1]}, "at class_names.0"),
        ({"left_out": -1}, "at left_out"),
        ({"sites": {"x": []}}, "its sites are none"),
        ({"sites": {"x": ["LinearSite"]}}, "its sites are none"),
        ({"sites": {"x": ["LinearSite", 1]}}, "its sites are none"),
        ({"sites": {"x": ["LinearSite", 1, 0]}}, "its sites are none"),
        ({"sites": {"x": ["LinearSite", 1, -3]}}, "its sites are none"),
        ({"sites": {"x": ["LinearSite", 1, 2**31]}}, "its sites are none"),
        ({"sites": {"x": ["LinearSite", 1, True]}}, "its sites are none"),
        ({"sites": {"x": ["LinearSite", 1, 2.0]}}, "its sites are none"),
        ({"sites": {"x": ["LinearSite", 1, 2, 3]}}, "its sites are none"),
        ({"sites": {"x": ["Pickle", 1]}}, "its sites are none"),
        ({"sites": {"x": [["LinearSite"], 1]}}, "its sites are none"),
        ({"sites": {"x": ["WeightSite"]}}, "its sites are none"),
        ({"sites": {"x": ["WeightSite", 3]}}, "its sites are none"),
        ({"sites": {"x": ["WeightSite", []]}}, "its sites are none"),
        ({"sites": {"x": ["WeightSite", [[1]]]}}, "its sites are none"),
        ({"sites": {"x": ["WeightSite", "ab"]}}, "its sites are none"),
        ({"sites": []}, "at sites"),
        ({"sites": {"x": ["LinearSite", 2**28, 2**28]}}, "its sites are none"),
        ({"sites": {"x": ["WeightSite", [2**20, 2**20]]}}, "its sites have 1,099,511,627,776 weights"),
        ({"sites": {f"x{n}": ["LinearSite", 2**17, 2**13] for n in range(9)}}, "its sites have 9,663,676,416 weights"),
        ({"sites": {f"x{n}": ["FeatureSite", 1] for n in range(10_001)}}, "at sites"),
        ({"sites": {"x" * 1001: ["FeatureSite", 1]}}, "at sites"),
        ({"totals": {"train": 2**53}}, "at totals.train"),
    ],
)
def test_a_hello_that_cannot_be_is_named(changes, line):
    with pytest.raises(RefusedError) as caught:
        parse_hello({**HELLO, **changes}, CLIENTS)
    assert line in str(caught.value)


# Anything at all

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5)
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=9
)


def places(value, path=()):
    """All places in a table."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from places(below, (*path, key))


def altered(value, path, new):
    if not path:
        return new
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = altered(value[key], rest, new)
    return copy


def mutated(facts):
    return st.sampled_from(list(places(facts))).flatmap(
        lambda path: ANYTHING.map(lambda new: altered(facts, path, new))
    )


def only_refused(call):
    """Whatever comes, it is taken or refused with a line."""
    with contextlib.suppress(RefusedError):
        call()


@given(mutated(report()))
@example({**report(), "losses": {"local": [10**400, 1]}})
@example({**report(), "losses": {"local": [1e300, 1]}})
def test_any_report_is_taken_or_refused(facts):
    if isinstance(facts, dict):
        only_refused(lambda: check_report(Parcel(facts, uploads()), ASKED, EXPECTED))
        only_refused(lambda: checked(facts))


@given(mutated(BEGUN))
def test_any_start_is_taken_or_refused(facts):
    only_refused(lambda: check_begun(Parcel(facts if isinstance(facts, dict) else {}), (1, 3), "feddlp", ROSTER))


@given(mutated({**HELLO, "classes": HELD}))
def test_any_hello_is_taken_or_refused(facts):
    only_refused(lambda: parse_hello(facts if isinstance(facts, dict) else {}, CLIENTS))


def nested(depth, inside="0"):
    return "[" * depth + inside + "]" * depth


@pytest.mark.parametrize("depth", [10, 300, *range(600, 1000, 25), 10**5])
@pytest.mark.parametrize("key", ["round", "method", "clients", "correct", "losses", "problem", "protocol"])
def test_a_bomb_of_brackets_does_no_harm(depth, key):
    text = json.dumps({"protocol": 1, **report()})[:-1] + f', "{key}": {nested(depth)}}}'
    record = RecordDict({"facts": ConfigRecord({"json": text}), "adapters": ArrayRecord({})})
    only_refused(lambda: check_report(from_record(record, 0), ASKED, EXPECTED))
    only_refused(lambda: one_line(from_record(record, 0).facts[key]))


def a_record(facts, **adapters):
    arrays = {name: Array("uint8", (len(value),), "safetensors", value) for name, value in adapters.items()}
    return RecordDict({"facts": ConfigRecord({"json": facts}), "adapters": ArrayRecord(arrays)})


@given(st.binary(max_size=200) | st.builds(lambda text: struct.pack("<Q", len(text)) + text.encode(), st.text()))
def test_any_bytes_are_an_adapter_or_refused(content):
    only_refused(lambda: from_record(a_record('{"protocol": 1}', x=content)))


@given(st.data())
def test_damaged_tensors_are_refused_or_found_out(data):
    """A bit that flips in a number is beyond any check here; everything else must be noticed or be harmless."""
    content = bytearray(save(uploads()["global"]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        only_refused(
            lambda damaged=damaged: check_report(
                from_record(a_record(json.dumps({"protocol": 1, **report()}), **{"global": damaged})), ASKED, EXPECTED
            )
        )


def header(**tensors):
    text = json.dumps({name: {"dtype": d, "shape": s, "data_offsets": o} for name, (d, s, o) in tensors.items()})
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        header(x=("F32", [0, 2**62, 4], [0, 0])),
        header(x=("F32", [2**63, 0], [0, 0])),
        header(x=("F32", [2**64 - 1, 0], [0, 0])),
        header(x=("F8_E8M0", [1], [0, 1])) + b"1",
        header(x=("F4", [2], [0, 1])) + b"1",
        header(x=("C64", [1], [0, 8])) + bytes(8),
        header(x=("U16", [1], [0, 2])) + bytes(2),
        header(x=("F32", [], [0, 4])) + bytes(4),
        header(**{"\ud800": ("F32", [], [0, 4])}) + bytes(4),
        struct.pack("<Q", 2**60),
        b"",
        b"\x80\x04\x95",  # a pickle
        torch.ones(3).numpy().tobytes(),
    ],
)
def test_headers_that_lie_are_refused(content):
    text = json.dumps({"protocol": 1, **report()})
    with pytest.raises(RefusedError):
        check_report(from_record(a_record(text, head=content)), ASKED, EXPECTED)


@pytest.mark.parametrize(
    "record",
    [
        RecordDict({}),
        RecordDict({"facts": ConfigRecord({"json": "{}"})}),
        RecordDict({"facts": ConfigRecord({}), "adapters": ArrayRecord({})}),
        RecordDict({"facts": ArrayRecord({}), "adapters": ConfigRecord({})}),
        RecordDict({"facts": ConfigRecord({"json": "{}"}), "adapters": ArrayRecord({}), "more": ArrayRecord({})}),
        a_record(b"\xff"),
        a_record([1, 2]),
        a_record(1.5),
        a_record("[]"),
        a_record("1" * 5000),
        a_record('{"protocol": 2}'),
        a_record("{}"),
        RecordDict({
            "facts": ConfigRecord({"json": '{"protocol": 1}'}),
            "adapters": ArrayRecord({"x": Array("float32", (1,), "numpy.ndarray", b"1234")}),
        }),
    ],
)  # fmt: skip
def test_what_is_no_parcel_is_refused(record):
    with pytest.raises(RefusedError):
        from_record(record)


def test_facts_without_end_are_not_even_read(monkeypatch):
    monkeypatch.setattr(limits, "FACTS", 50)
    with pytest.raises(RefusedError, match="its facts take 70 characters, 50 at most"):
        from_record(a_record("[" * 70))


@given(st.text() | ANYTHING | st.builds(RefusedError, st.text()))
def test_what_others_say_is_one_printable_line(said):
    line = one_line(said)
    assert line.isprintable()
    assert len(line) <= limits.LINE + 3
    line.encode()
