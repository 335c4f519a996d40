"""Configuration: what is wrong is refused at the door, by name; what is right comes back the same."""

from __future__ import annotations

import os
import time
import tomllib
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.config import Config, load_config, parse_value
from feddlp.errors import UserError
from feddlp.methods import registry
from feddlp.methods.base import STACKABLE

DEMO = tomllib.loads(files("feddlp").joinpath("assets/demo.toml").read_text("utf-8"))


def refusal(*overrides: str, path: Path | None = None) -> str:
    """The one line that a wrong configuration gives."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write_toml(text: str) -> Path:
        path = tmp_path / "my.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_toml


# The demo


def test_every_key_of_the_demo_is_loaded():
    config = load_config(None).model_dump()
    for key, value in DEMO.items():
        if isinstance(value, dict):
            assert value.items() <= config[key].items()
        else:
            assert config[key] == value


def test_an_empty_file_is_all_defaults(write):
    assert load_config(write("")) == Config()


def test_overrides_lie_on_top_of_the_file(write):
    config = load_config(write("seed = 4\n[training]\nrounds = 7\nbatch_size = 5"), ["training.rounds=9", "seed=2"])
    assert (config.seed, config.training.rounds, config.training.batch_size) == (2, 9, 5)


# Unknown keys


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("sed=1", "sed is not a configuration key; did you mean seed?"),
        ("trainng.rounds=1", "trainng is not a configuration key; did you mean training?"),
        ("training.round=1", "training.round is not a configuration key; did you mean rounds?"),
        ("data.clinets=1", "data.clinets is not a configuration key; did you mean clients"),
        ("model.adapts=text", "model.adapts is not a configuration key; did you mean adapt"),
        (
            "method.kd_wieght=1",
            "method.kd_wieght is not an option of zero_shot, local, flora, feddlp; did you mean kd_w",
        ),
        ("method.feddlp.kd_wieght=1", "method.feddlp.kd_wieght is not a configuration key; did you mean kd_weight"),
        ("method.fedlp.kd_weight=1", "method.fedlp is not a method; did you mean feddlp or fedclip?"),
        ("zzz=1", "zzz is not a configuration key; valid: data, deployment, method, methods, model"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key, named):
    assert refusal(key).startswith(named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sed = 1", "did you mean seed?"),
        ("[traning]\nrounds = 3", "did you mean training?"),
        ("[training]\nround = 3", "did you mean rounds?"),
        ("[method]\nkd_wieght = 3.0", "did you mean kd_weight"),
        ("[method.feddlp]\nkd_wieght = 3.0", "did you mean kd_weight"),
        ("[method.fedlp]\nkd_weight = 3.0", "did you mean feddlp or fedclip?"),
    ],
)
def test_an_unknown_key_in_a_file_is_refused_with_the_nearest(write, text, named):
    assert named in refusal(path=write(text))


def test_a_common_key_must_belong_to_a_chosen_method():
    assert load_config(None, ["methods=feddlp", "method.kd_weight=2"]).build_methods()["feddlp"].kd_weight == 2
    assert "method.kd_weight is not an option of flora" in refusal("methods=flora", "method.kd_weight=2")


def test_a_common_key_reaches_only_the_methods_that_have_it():
    built = load_config(None, ["methods=zero_shot,flora,feddlp", "method.rank=3"]).build_methods()
    assert built["flora"].rank == 3
    assert not hasattr(built["zero_shot"], "rank")
    assert built["feddlp"].local_rank == registry()["feddlp"]().local_rank


def test_a_methods_own_key_wins_over_the_common_one(write):
    built = load_config(
        write("methods = ['flora', 'local']\n[method]\nlr = 0.5\n[method.flora]\nlr = 0.25")
    ).build_methods()
    assert (built["flora"].lr, built["local"].lr) == (0.25, 0.5)


def test_a_value_in_the_place_of_a_method_is_refused():
    assert "method.feddlp" in refusal("method.feddlp=5")


def test_a_section_of_a_value_lists_no_nameless_section():
    message = refusal("training.rounds.x=5")
    assert "rounds is a value, not a section" in message
    assert ": ," not in message


# Wrong values


@pytest.mark.parametrize(
    "override",
    [
        "seed=1.5", "seed=-1", "seed=true", "seed='1'", "data.clients=0", "data.clients=2.0", "data.clients=ten",
        "data.dirichlet_beta=0", "data.dirichlet_beta=-1", "data.dirichlet_beta=nan", "data.dirichlet_beta=inf",
        "data.dirichlet_beta=-inf", "data.test_share=1", "data.test_share=0", "data.test_share=nan",
        "data.validation_share=1.0", "data.validation_share=-0.1", "data.min_samples=1", "data.partition=sorted",
        "data.partition_seed=4294967296", "data.classes_per_client=0", "data.dataset=5", "data.template=[1]",
        "model.adapt=all", "model.dtype=float16", "model.device=0", "training.rounds=0", "training.rounds=1e2",
        "training.batch_size=0", "training.local_epochs=-3", "training=5", "name=../other", "name=", "name=a/b",
        "methods=5", "methods=[]", "methods=['flora', 5]", "runs_dir=3", "method=5",
        "method.lr=nan", "method.lr=inf", "method.lr=fast", "method.lr=[1.0]", "method.rank=2.5",
        "method.objective=mse", "method.feddlp.kd_direction=both", "method.flora.lora_init=zeros",
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(override):
    key = override.partition("=")[0]
    message = refusal(override)
    assert "\n" not in message
    assert key.rpartition(".")[2] in message.partition(":")[0]


@pytest.mark.parametrize(
    "override",
    [
        "method.lr=-1.0", "method.rank=0", "method.rank=-2", "method.feddlp.local_rank=0",
        "method.feddlp.global_rank=0", "method.beta1=1.0", "method.beta2=2.0", "method.beta1=-0.1", "method.eps=-1e-8",
        "method.weight_decay=-0.1", "method.max_grad_norm=-1.0", "method.feddlp.gate_threshold=-1e-4",
        "method.feddlp.kd_temperature=0.0", "method.feddlp.kd_weight=-1.0",
    ],
)  # fmt: skip
def test_a_hyper_parameter_out_of_range_is_refused_by_name(override):
    assert override.partition("=")[0].rpartition(".")[2] in refusal(override)


def test_the_value_and_the_number_of_other_mistakes_are_given():
    message = refusal("data.clients=0", "training.rounds=0", "seed=-1")
    assert message == "seed=-1: input should be greater than or equal to 0 (and 2 more)"


@given(st.floats(exclude_min=True, min_value=0, allow_infinity=False, allow_nan=False, allow_subnormal=False))
def test_every_positive_beta_is_taken_as_it_is(beta):
    assert load_config(None, [f"data.dirichlet_beta={beta!r}"]).data.dirichlet_beta == beta


def test_whole_numbers_serve_as_fractions():
    assert load_config(None, ["data.dirichlet_beta=1", "method.lr=1"]).build_methods()["flora"].lr == 1.0


# Files


@pytest.mark.parametrize("text", ["seed = ", "[data", "seed = 1\nseed = 2", "not toml at all", "{'json': 1}"])
def test_what_is_not_toml_is_refused_by_name(write, text):
    message = refusal(path=write(text))
    assert "my.toml is not valid TOML: " in message
    assert "\n" not in message


def test_a_binary_file_is_refused_by_name(tmp_path):
    path = tmp_path / "image.toml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    assert "image.toml is not valid TOML" in refusal(path=path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    assert "nowhere.toml (No such file or directory)" in refusal(path=tmp_path / "nowhere.toml")


def test_a_folder_is_no_configuration(tmp_path):
    assert f"cannot read the configuration {tmp_path}" in refusal(path=tmp_path)


# Overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("1e-4", 1e-4), ("true", True), ("'5'", "5"), ('"a b"', "a b"), ("[1, 2]", [1, 2]),
        ("feddlp", "feddlp"), ("feddlp, flora", "feddlp, flora"), ("a photo of a {}.", "a photo of a {}."),
        ("folder:/a b/c", "folder:/a b/c"), ("a=b", "a=b"), ("", ""), ("cuda:1", "cuda:1"), ("True", "True"),
    ],
)  # fmt: skip
def test_a_value_is_toml_or_else_a_string(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_words_need_no_quotes():
    config = load_config(None, ["data.dataset=folder:my photos=x", "data.template=a {}, blurred", "model.adapt = text"])
    assert config.data.dataset == f"folder:{Path.cwd() / 'my photos=x'}"
    assert config.data.template == "a {}, blurred"
    assert config.model.adapt == "text"


def test_a_name_may_look_like_a_number():
    assert load_config(None, ["name=2024"]).name == "2024"


@pytest.mark.parametrize("override", ["seed", "=5", "a..b=5", ".seed=5", "seed.=5", ""])
def test_what_is_no_override_is_refused(override):
    assert f"{override!r} is not an override; write key=value" in refusal(override)


@pytest.mark.parametrize("override", ["training=5", "data={clients = 3}", "model=tiny"])
def test_a_whole_section_cannot_be_overridden(override):
    assert "is a section; set one of its keys" in refusal(override)


def test_the_last_override_wins():
    assert load_config(None, ["seed=1", "seed=2"]).seed == 2
    built = load_config(None, ["method.lr=1", "method.flora.lr=2", "method.flora.lr=3"]).build_methods()
    assert (built["flora"].lr, built["local"].lr) == (3.0, 1.0)


def test_a_common_override_wins_over_a_complete_file(write):
    complete = write(load_config(None, ["method.lr=0.5"]).to_toml())
    assert {method.lr for method in load_config(complete).build_methods().values()} == {0.5}
    changed = load_config(complete, ["method.lr=0.25"]).build_methods()
    assert {method.lr for method in changed.values()} == {0.25}


def test_a_common_override_changes_nothing_else_of_a_complete_file(write):
    complete = write(load_config(None, ["method.flora.rank=7", "method.feddlp.kd_weight=0.5"]).to_toml())
    built = load_config(complete, ["method.lr=0.25"]).build_methods()
    assert built["flora"].rank == 7
    assert built["feddlp"].kd_weight == 0.5


# Methods


@pytest.mark.parametrize("given_as", ["'flora,feddlp'", "' flora , feddlp '", "['flora', 'feddlp']", "flora, feddlp"])
def test_methods_are_a_list_or_a_line(given_as):
    config = load_config(None, [f"methods={given_as}"])
    assert config.methods == ("flora", "feddlp")
    assert list(config.build_methods()) == ["flora", "feddlp"]


def test_methods_in_a_file_are_a_list_or_a_line(write):
    for text in ("methods = ['flora', 'feddlp']", "methods = 'flora, feddlp'"):
        assert load_config(write(text)).methods == ("flora", "feddlp")


def test_an_unknown_method_is_refused_with_the_nearest():
    assert refusal("methods=flora,fedlp") == "methods: 'fedlp' is not known; did you mean feddlp or fedclip?"
    assert "valid: " in refusal("methods=")
    assert "methods: 'Flora'" in refusal("methods=Flora")


def test_a_method_cannot_run_twice():
    assert "methods: 'flora' is given twice" in refusal("methods=flora, feddlp, flora")


@pytest.mark.parametrize("name", sorted(registry()))
def test_every_method_can_be_run_alone_with_its_defaults(name):
    (built,) = load_config(None, [f"methods={name}"]).build_methods().values()
    chosen = {key: getattr(built, key) for key in STACKABLE if hasattr(built, key)}  # these come from the preset
    assert built == registry()[name](**chosen)


# Round trip

shares = st.floats(0.01, 0.99)
choices = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True),
        "methods": st.lists(st.sampled_from(sorted(registry())), min_size=1, unique=True),
        "seed": st.integers(0, 2**40),
        "data": st.fixed_dictionaries(
            {},
            optional={
                "dataset": st.text(st.characters(exclude_categories=["Cs"])),
                "template": st.text(st.characters(exclude_categories=["Cs"])),
                "dirichlet_beta": st.floats(1e-9, 1e9),
                "test_share": shares,
                "validation_share": shares,
                "partition": st.sampled_from(["dirichlet", "pathological", "iid"]),
            },
        ),
        "model": st.fixed_dictionaries({}, optional={"adapt": st.sampled_from(["image", "text"])}),
        "training": st.fixed_dictionaries({}, optional={"rounds": st.integers(1, 10**6)}),
        "method": st.fixed_dictionaries(
            {}, optional={"lr": st.floats(1e-9, 1), "feddlp": st.fixed_dictionaries({"kd_weight": st.floats(0, 10)})}
        ),
    },
)


@settings(deadline=None, max_examples=60)
@given(choices)
def test_the_written_configuration_is_the_same_again(table):
    config = Config(**table)
    again = Config(**tomllib.loads(config.to_toml()))
    written = {"method", "rates"}
    assert again.model_dump(exclude=written) == config.model_dump(exclude=written)
    assert again.build_methods() == config.build_methods()
    assert Config(**tomllib.loads(again.to_toml())) == again
    assert again.to_toml() == config.to_toml()


def test_a_complete_configuration_loads_from_its_file_as_an_equal_one(write):
    config = load_config(None, ["method.lr=1e-4", "data.template='größe {} \"quoted\"'"])
    first = load_config(write(config.to_toml()))
    second = load_config(write(first.to_toml()))
    assert first == second
    assert first.build_methods() == config.build_methods()


def test_the_written_configuration_holds_every_key():
    table = tomllib.loads(load_config(None).to_toml())
    assert set(table) == set(Config.model_fields)
    for section in ("data", "model", "training"):
        assert set(table[section]) == set(Config.model_fields[section].annotation.model_fields)
    assert table["method"] == {name: asdict(built) for name, built in load_config(None).build_methods().items()}
    assert all(table["method"][name].keys() == asdict(registry()[name]()).keys() for name in table["method"])


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_config(None).training.rounds = 3


def test_a_mistyped_key_is_refused_even_for_a_method_that_is_not_chosen():
    with pytest.raises(UserError, match=r"method.feddlp.kd_wieght is not a configuration key; did you mean kd_weight"):
        load_config(None, ["methods=flora", "method.feddlp.kd_wieght=7"])


@pytest.mark.parametrize("order", [1, -1])
def test_a_specific_override_wins_over_a_common_one_in_any_order(order):
    config = load_config(None, ["method.feddlp.lr=1e-5", "method.lr=1e-4"][::order])
    methods = config.build_methods()
    assert (methods["feddlp"].lr, methods["flora"].lr) == (1e-5, 1e-4)


def test_the_fingerprint_knows_what_decides_results_and_nothing_else():
    base = load_config(None).fingerprint()
    for harmless in (
        "name=other",
        "runs_dir=/tmp/x",
        "training.rounds=99",
        "model.device=cpu",
        "data.dataset=folder:x",
    ):
        assert load_config(None, [harmless]).fingerprint() == base
    for telling in ("seed=1", "method.lr=2e-3", "data.clients=9", "training.batch_size=8", "methods=flora"):
        assert load_config(None, [telling]).fingerprint() != base


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("rounds=3", "training.rounds"),
        ("lr=1", "method.lr"),
        ("methods=FedDLP", "feddlp"),
        ("data.batch_size=3", "training.batch_size"),
    ],
)
def test_a_key_in_the_wrong_place_is_pointed_to_its_own(override, hint):
    with pytest.raises(UserError, match=rf"did you mean {hint}\?"):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "gib"), [("auto", "auto"), ("8", 8), ("8.5", 8.5), ("8GiB", 8), ("512MiB", 0.5), ("256 MiB", 0.25)]
)
def test_a_memory_limit_is_read_in_the_units_people_write(text, gib):
    assert load_config(None, [f"training.memory_limit={text}"]).training.memory_limit == gib


@pytest.mark.parametrize("text", ["abc", "0", "-1", "1.2.3GiB", "8TB", "true"])
def test_another_memory_limit_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"training\.memory_limit=.*write auto, a number of GiB, or for example 512MiB"):
        load_config(None, [f"training.memory_limit={text}"])


# Files that nobody should wait for


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    (tmp_path / "my.toml").write_text('name = "bom"\n', encoding="utf-8-sig")
    assert load_config(tmp_path / "my.toml").name == "bom"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_a_device_is_no_configuration(tmp_path, make):
    make(tmp_path / "my.toml")
    assert "cannot read the configuration" in refusal(path=tmp_path / "my.toml")
    assert "my.toml (not a regular file)" in refusal(path=tmp_path / "my.toml")


DEEP = 100_000
NESTED = ["a=" + "[" * DEEP, "a." * DEEP + "b=1", "[" + "a." * DEEP + "b]", "[[" + "a . " * DEEP + "b]]"]
NESTED += ['"x"' + ".'y'" * DEEP + "=1", "a={b=" * DEEP, "a={" + "b." * DEEP + "c=1}", "method." + "a." * 150 + "b=1"]


@pytest.mark.parametrize("place", range(len(NESTED)))
def test_a_file_that_is_nested_without_end_is_refused_at_once(write, place):
    started = time.process_time()
    message = refusal(path=write(NESTED[place]))
    assert "my.toml is not valid TOML: " in message
    assert len(message) < 300
    assert time.process_time() - started < 5


def test_a_file_of_many_lines_is_refused_at_once(tmp_path):
    with (tmp_path / "my.toml").open("wb") as file:
        file.truncate(2**30)
    assert "more than 1,048,576 bytes" in refusal(path=tmp_path / "my.toml")


def test_an_override_that_is_nested_without_end_is_refused():
    assert "a is not a configuration key" in refusal("a." * 50_000 + "b=1")
    assert "seed" in refusal("seed=1\n" + "a." * 50_000 + "b=1")


def test_values_with_many_dots_are_values(write):
    text = f'[data]\ntemplate = "{"." * 300} {{}}"\n# {"a." * 90}\n[method]\nlr = 0.5\n'
    assert load_config(write(text)).data.template.endswith("{}")


@pytest.mark.parametrize("key", ["data.dataset=folder:", "model.checkpoint=", "runs_dir=", "data.template={}"])
def test_what_no_record_can_hold_is_refused_before_the_work(key):
    message = refusal(key + os.fsdecode(b"caf\xe9"))
    assert f"{key.partition('=')[0].rpartition('.')[2]} = " in message
    assert "not UTF-8" in message
