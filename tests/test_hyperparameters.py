"""Which value a field gets: precedence, variants, presets, and a written configuration that reads back the same."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.config import load_config, validate
from feddlp.errors import UserError
from feddlp.hyperparameters import (
    asset,
    base_of,
    descriptions,
    known_names,
    preset_fields,
    resolve_preset,
    sections_of,
    variant_fields,
    variants,
)
from feddlp.methods import registry
from feddlp.methods.base import STACKABLE

REAL = "openai/clip-vit-base-patch32"  # a name only; nothing is loaded here
PUBLISHED = """
image pets | local 1e-6/1e-6 | fedclip 1e-3/1e-3 | flora 5e-6/5e-6 | feddat 5e-6/5e-6 | feddlp 1e-5/1e-5 | 0.01/0.01
image flowers | local 5e-6/1e-6 | fedclip 1e-3/1e-3 | flora 1e-5/1e-5 | feddat 1e-5/5e-6 | feddlp 1e-5/1e-5 | 0.01/0.01
image aircraft | local 1e-6/1e-6 | fedclip 1e-3/1e-3 | flora 1e-5/5e-5 | feddat 1e-5/1e-5 | feddlp 5e-5/5e-5 | 0.1/0.01
image dtd | local 5e-6/5e-6 | fedclip 1e-3/1e-3 | flora 1e-5/1e-5 | feddat 1e-5/1e-5 | feddlp 1e-5/5e-5 | 0.001/0.01
text pets | local 1e-6/1e-6 | fedclip 5e-5/5e-5 | flora 1e-6/1e-6 | feddat 1e-6/5e-5 | feddlp 5e-5/5e-5 | 1/10
text dtd | local 1e-5/1e-5 | fedclip 1e-4/1e-4 | flora 1e-5/1e-6 | feddat 1e-5/1e-5 | feddlp 5e-5/5e-5 | 10/10
"""  # learning rates at beta 0.1 / 0.01, and last kd_weight; copied from the table of the public code's settings
NAMES = sorted({*registry(), *variants()})


def published():
    for line in PUBLISHED.strip().splitlines():
        where, *cells, kd = (cell.strip() for cell in line.split("|"))
        tower, data = where.split()
        rates = {name: both.split("/") for name, both in (cell.split() for cell in cells)}
        for column, beta in enumerate((0.1, 0.01)):
            values = {name: float(both[column]) for name, both in rates.items()}
            yield tower, data, beta, values, float(kd.split("/")[column])


def build(methods, method=None, **top):
    """The methods of a configuration."""
    names = methods if isinstance(methods, list) else [methods]
    built = validate({"methods": names, "method": method or {}, **top}).build_methods()
    return built if isinstance(methods, list) else built[methods]


def refusal(methods, method=None, **top):
    with pytest.raises(UserError) as caught:
        build(methods, method, **top)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Precedence


def test_every_source_yields_to_the_one_before_it():
    """kd_weight of combined_published: own table, common table, variant, preset, class, in this order."""
    name = "combined_published"
    assert build(name, {"kd_weight": 3.0, name: {"kd_weight": 4.0}}).kd_weight == 4.0
    assert build(name, {"kd_weight": 3.0}).kd_weight == 3.0
    assert build(name, {"combined": {"kd_weight": 5.0}}).kd_weight == 1.0  # another method's table is not its own
    assert build(name).kd_weight == variants()[name]["kd_weight"] == 1.0
    paper = {"preset": "paper", "model": {"checkpoint": REAL, "adapt": "text"}}
    assert build(name, **paper).kd_weight == 1.0
    assert build("combined", **paper).kd_weight == 10.0
    assert build("combined", **paper).kd_temperature == registry()["combined"].kd_temperature


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(["own", "common", "variant", "preset"])))
def test_the_first_source_that_has_a_value_gives_it(sources):
    """The same with every subset of sources, for the learning rate of a variant."""
    given_values = {"own": 0.1, "common": 0.2, "variant": 0.3, "preset": 1e-5}
    with pytest.MonkeyPatch.context() as patch:
        table = {"feddat_original": dict(variants()["feddat_original"])}
        if "variant" in sources:
            table["feddat_original"]["lr"] = 0.3
        patch.setattr("feddlp.hyperparameters.variants", lambda: table)
        tables = {"lr": 0.2} if "common" in sources else {}
        tables |= {"feddat_original": {"lr": 0.1}} if "own" in sources else {}
        preset = {"preset": "paper"} if "preset" in sources else {"preset": "tuned"}
        found = build("feddat_original", tables, **preset).lr
    tuned = preset_fields(setting("tuned"), "feddat", "feddat").get("lr", registry()["feddat"].lr)
    expected = next(
        (given_values[source] for source in ("own", "common", "variant", "preset") if source in sources), tuned
    )
    assert found == expected


def setting(preset, adapt="image", data="", beta=0.1):
    from feddlp.hyperparameters import Setting

    return Setting(preset, adapt, data, beta)


def test_a_common_key_reaches_every_method_that_has_it_and_no_other():
    built = build(["flora", "feddlp", "feddlp_shared"], {"kd_weight": 2.5, "rank": 7})
    assert built["flora"].rank == 7
    assert built["feddlp"].kd_weight == built["feddlp_shared"].kd_weight == 2.5
    assert "wd" not in vars(built["flora"])
    assert "rank is not an option" in refusal("feddlp", {"rank": 7})


# Variants


@pytest.mark.parametrize("name", sorted(variants()))
def test_a_variant_is_its_base_with_its_fields_changed(name):
    base, own = base_of(name, {}), variant_fields(name)
    changed, plain = build(name, preset="tuned"), build(base, preset="tuned")
    assert type(changed) is registry()[base]
    assert own, "a variant that changes nothing"
    assert {key: getattr(changed, key) for key in own} == own
    assert any(getattr(plain, key) != value for key, value in own.items())
    for field in fields(plain):
        if field.name not in own and field.name not in STACKABLE:  # those a variant may be tuned in by itself
            assert getattr(changed, field.name) == getattr(plain, field.name)


def test_flora_as_released_scales_by_32_and_only_attention_outputs_are_adapted():
    adapter = build("flora_released").adapters()["adapter"]
    assert (adapter.scaling, adapter.layers) == (32.0, "attention_out")


def test_the_originals_are_those_of_their_papers():
    dat, clip = build("feddat_original"), build("fedclip_original")
    assert dat.dat == {"local": 0.5, "copy": 0.5}
    assert (dat.loss_share, dat.kd_temperature, dat.update_order) == (0.5, 3.0, "simultaneous")
    assert (clip.beta1, clip.beta2, clip.eps, clip.weight_decay, clip.decay) == (0.9, 0.98, 1e-6, 0.2, "l2")
    for method in (dat, clip):
        assert method.averaging == "uniform"
        assert method.reset_optimizer


def test_a_users_own_variant_has_its_own_fields_and_its_bases_presets():
    tables = {"wide": {"variant_of": "flora", "rank": 16}, "lora_alpha": 4.0}
    built = build(["flora", "wide"], tables, preset="paper")
    assert (built["wide"].rank, built["flora"].rank) == (16, 2)
    assert built["wide"].lora_alpha == built["flora"].lora_alpha == 4.0
    assert built["wide"].lr == built["flora"].lr == 1e-5
    assert known_names(tables) == [*registry(), *variants(), "wide"]


@pytest.mark.parametrize(
    ("methods", "tables", "named"),
    [
        ("wide", {"wide": {"variant_of": "floar"}}, "did you mean flora"),
        ("flora", {"wide": {"variant_of": "floar"}}, "did you mean flora"),  # although it is not chosen
        ("wide", {"wide": {"variant_of": "flora_released"}}, "flora_released is not a method"),
        ("wide", {"wide": {"variant_of": "flora", "ranks": 3}}, "did you mean rank"),
        ("wide", {"wide": {"variant_of": "flora", "rank": 0}}, "method.wide.rank=0"),
        ("wide", {"wide": {"variant_of": 3}}, "variant_of=3"),
        ("wide", {"wide": {"rank": 3}}, "'wide' is not known"),
        (["flora", "../wide"], {"../wide": {"variant_of": "flora"}}, "method.../wide: a variant's name"),
        (["flora"], {"a, b": {"variant_of": "flora"}}, "method.a, b: a variant's name"),
        ("flora", {"flora": {"variant_of": "local"}}, "variant_of"),
        ("feddat_original", {"feddat_original": {"variant_of": "flora"}}, "variant_of"),
        ("feddat_original", {"feddat_original": {"adapter_shear": 1.0}}, "adapter_share"),
        ("flora", {"flora": {"summary": "mine"}}, "summary is not a configuration key"),
        ("flora", {"flora": {"factors_trained": "B", "factors_sent": "A"}}, "would send nothing that was trained"),
        ("feddlp_shared", {"compact": True}, "averaged rank by rank"),
    ],
    ids=str,
)
def test_a_wrong_variant_or_field_is_refused_in_one_line(methods, tables, named):
    assert named in refusal(methods, tables)


def test_every_method_and_variant_is_described_in_one_line():
    assert descriptions().keys() == set(NAMES)
    for text in descriptions().values():
        assert text.endswith(".")
        assert "\n" not in text
    assert not set(registry()) & set(variants())


# Presets


@pytest.mark.parametrize(("tower", "data", "beta", "rates", "kd"), list(published()), ids=str)
@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_the_published_rates_are_those_of_the_public_code(preset, tower, data, beta, rates, kd):
    top = {"preset": preset, "model": {"checkpoint": REAL, "adapt": tower}}
    built = build([*rates, "combined", "sora_local", "feddlp_shared"], data=where(data, beta), **top)
    assert {name: built[name].lr for name in rates} == rates
    assert built["feddlp"].kd_weight == built["combined"].kd_weight == built["feddlp_shared"].kd_weight == kd
    assert built["combined"].lr == built["feddlp_shared"].lr == rates["feddlp"]
    assert built["sora_local"].lr == rates["local"]
    assert built["feddat"].kd_weight == registry()["feddat"].kd_weight


def where(data, beta):
    return {"known_as": data, "dirichlet_beta": beta}


@pytest.mark.parametrize(("beta", "column"), [(100.0, 0.1), (0.1, 0.1), (0.032, 0.1), (0.031, 0.01), (1e-4, 0.01)])
def test_the_nearer_of_the_papers_two_betas_is_taken(beta, column):
    """Nearer on a logarithmic scale: the border is at the root of 0.1 times 0.01."""
    for data in ("flowers", "aircraft", "dtd"):
        for method in ("local", "flora", "feddat", "feddlp"):
            found, expected = (
                preset_fields(setting("paper", "image", data, b), method, method) for b in (beta, column)
            )
            assert found == expected


@pytest.mark.parametrize("tower", ["image", "text", "both"])
def test_other_data_has_rates_too_and_both_towers_take_those_of_images(tower):
    for name in registry():
        fields_found = preset_fields(setting("paper", tower, ""), name, name)
        assert ("lr" in fields_found) == (name != "zero_shot")
    both, image = (preset_fields(setting("paper", adapt, "dtd"), "feddlp", "feddlp") for adapt in ("both", "image"))
    assert both == image


def test_a_preset_ties_its_start_to_its_rates():
    for preset in ("paper", "authors"):
        assert {build(name, preset=preset).lora_init for name in ("local", "flora", "feddat", "feddlp")} == {"authors"}
    assert build("feddlp", preset="tuned").lora_init == "kaiming"
    authors, paper = (build("feddlp", preset=name) for name in ("authors", "paper"))
    assert (authors.objective, authors.prox) == ("in_batch", "sora_code")
    assert (paper.objective, paper.prox) == ("class_ce", "soft")


def test_tuned_is_for_the_embedded_model_only_and_auto_knows():
    assert resolve_preset("auto", "tiny-clip") == "tuned"
    assert resolve_preset("auto", REAL) == "paper"
    for preset in ("paper", "authors"):
        assert resolve_preset(preset, "tiny-clip") == resolve_preset(preset, REAL) == preset
    message = refusal("flora", preset="tuned", model={"checkpoint": REAL})
    assert f"preset=tuned holds for tiny-clip only, not for model.checkpoint={REAL}" in message
    assert build("flora", model={"checkpoint": REAL}) == build("flora", preset="paper", model={"checkpoint": REAL})


AUTHORS = {
    "training": {"rounds": 101},
    "data": {"validation_share": 0.0, "resize": "squash", "train_template": "a photo of a {}."},
}


def test_the_authors_settings_hold_unless_told_otherwise():
    assert (sections_of("authors"), sections_of("paper"), sections_of("tuned")) == (AUTHORS, {}, {})
    for section, keys in AUTHORS.items():
        for key, value in keys.items():
            other = {"rounds": 100, "validation_share": 0.2, "resize": "crop", "train_template": "a {}"}[key]
            assert getattr(getattr(validate({"preset": "authors"}), section), key) == value
            assert getattr(getattr(load_config(None, ["preset=authors"]), section), key) == value  # not the demo's
            assert getattr(getattr(validate({"preset": "authors", section: {key: other}}), section), key) == other
            asked = load_config(None, [f"{section}.{key}={other}", "preset=authors"])
            assert getattr(getattr(asked, section), key) == other
            assert getattr(getattr(validate({"preset": "paper"}), section), key) != value
    kept = validate({"preset": "authors", "training": {"batch_size": 8}}).training
    assert (kept.rounds, kept.batch_size) == (101, 8)
    assert load_config(None, ["preset=paper"]).training.rounds == load_config(None).training.rounds == 12


def test_the_authors_clip_neither_local_nor_fedclip():
    names = ["local", "local_rank4", "fedclip", "flora", "feddat", "feddlp", "sora_local"]
    norms = {name: method.max_grad_norm for name, method in build(names, preset="authors").items()}
    assert norms == dict.fromkeys(names, 1.0) | dict.fromkeys(names[:3], 0.0)
    assert {method.max_grad_norm for method in build(names, preset="paper").values()} == {1.0}
    assert build("local", {"max_grad_norm": 2.0}, preset="authors").max_grad_norm == 2.0


def test_every_preset_names_fields_and_methods_that_exist():
    table = asset("presets.toml")
    presets = [entry for name, entry in table.items() if name not in ("published", "same_rates")]
    known = {field.name for method in registry().values() for field in fields(method)}
    for preset in presets:
        assert preset["summary"].endswith(".") or ")" in preset["summary"]
        assert preset.get("method", {}).keys() <= known
        for name, values in preset.get("one_method", {}).items():
            assert values.keys() <= {field.name for field in fields(registry()[name])}
    for rows in (row for tower in table["published"].values() for row in tower.values()):
        assert rows.keys() <= {*registry(), *variants(), "kd_weight"}
        assert all(len(both) == 2 and min(both) > 0 for both in rows.values())
    for tower in ("image", "text"):
        assert all(preset_fields(setting("tuned", tower), name, name) for name in registry().keys() - {"zero_shot"})
        for name, values in table["tuned"][tower].items():
            assert name in {*registry(), *variants()}
            assert values.keys() <= set(STACKABLE)
    for name, source in table["same_rates"].items():
        assert {name, source} <= registry().keys()
        assert name not in table["published"]["image"]["any"]


# Written and read back


@pytest.mark.parametrize("preset", ["auto", "paper", "authors"])
@pytest.mark.parametrize("name", NAMES)
def test_a_written_configuration_reads_back_the_same(name, preset, tmp_path):
    """For every method and variant: the same methods, the same digest, and the same text once more."""
    config = validate({"methods": [name], "preset": preset, "method": {"lr": 0.0123}, "data": {"dirichlet_beta": 0.01}})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    again = load_config(path)
    assert again.build_methods() == config.build_methods()
    assert again.fingerprint() == config.fingerprint()
    assert again.to_toml() == config.to_toml()
    written = tomllib.loads(config.to_toml())["method"][name]
    assert written.items() >= asdict(config.build_methods()[name]).items()


def test_all_methods_and_an_own_variant_read_back_together(tmp_path):
    tables = {"wide": {"variant_of": "flora", "rank": 16}, "rank": 3, "local_rank4": {"weight_decay": 0.5}}
    config = validate({"methods": [*NAMES, "wide"], "method": tables})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    again = load_config(path)
    assert list(again.build_methods()) == [*NAMES, "wide"]
    assert again.build_methods() == config.build_methods()
    assert again.fingerprint() == config.fingerprint()
    built = again.build_methods()
    assert (built["wide"].rank, built["flora"].rank, built["local_rank4"].rank) == (16, 3, 3)


def test_a_written_configuration_does_not_depend_on_presets_any_more(tmp_path, monkeypatch):
    """A later version with other rates plays an old run as it was."""
    config = validate({"methods": ["feddlp"], "preset": "paper"})
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    monkeypatch.setattr("feddlp.hyperparameters.preset_fields", lambda *_: {"lr": 9.0, "kd_weight": 9.0})
    assert load_config(path).build_methods() != validate({"methods": ["feddlp"], "preset": "paper"}).build_methods()
    monkeypatch.undo()
    assert load_config(path).build_methods() == config.build_methods()


@pytest.mark.parametrize(
    "change",
    [{"method": {"lr": 0.5}}, {"preset": "paper"}, {"data": {"dirichlet_beta": 0.01, "known_as": "flowers"}}],
    ids=str,
)
def test_the_digest_knows_every_value_wherever_it_came_from(change):
    base = {"methods": ["local"], "preset": "authors", "data": {"known_as": "flowers"}}
    assert validate(base).fingerprint() != validate({**base, **change}).fingerprint()
