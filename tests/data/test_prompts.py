"""Class prompts: the template with a class name in its one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddlp.data.features import encode_prompts
from feddlp.data.prompts import class_prompts
from feddlp.errors import UserError
from feddlp.model.checkpoint import load_backbone

plain = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]))


@given(plain, plain, st.lists(st.text()))
def test_every_name_takes_the_place_in_the_template(before, after, names):
    assert class_prompts(names, f"{before}{{}}{after}") == [before + name + after for name in names]


@pytest.mark.parametrize("name", ["{}", "{0}", "100 %", "a {b} c", "größe", "猫"])
def test_names_are_taken_as_they_are(name):
    assert class_prompts([name], "a photo of a {}.") == [f"a photo of a {name}."]


@pytest.mark.parametrize(
    "template", ["", "a photo", "{} and {}", "{0}", "{name}", "{:>5}", "{", "}", "{{}}", "{} {", "}{}"]
)
def test_a_template_without_exactly_one_place_is_refused(template):
    with pytest.raises(UserError, match=r"data\.template=.* needs exactly one \{\}") as refusal:
        class_prompts(["cat"], template)
    assert repr(template) in str(refusal.value)


def test_the_number_of_classes_is_kept():
    assert class_prompts([], "{}") == []
    assert len(class_prompts(["cat"] * 3, "{}")) == 3


@pytest.mark.parametrize(("one", "other"), [("cat!", "cat !"), ("Cat", "cat"), ("a  b", "a b"), ("<5 mm", "< 5mm")])
def test_classes_of_the_same_tokens_are_refused_and_both_are_named(one, other, backbones):
    with pytest.raises(UserError, match="are the same tokens to this checkpoint") as found:
        encode_prompts(backbones["image"], class_prompts([one, "dog", other], "a photo of a {}."))
    assert one in str(found.value)
    assert other in str(found.value)


def test_siglip_drops_punctuation_and_so_classes(checkpoints):
    backbone = load_backbone(str(checkpoints["siglip"]), "image")
    with pytest.raises(UserError, match="'a <5 mm cat' and 'a >5 mm Cat' are the same tokens"):
        encode_prompts(backbone, ["a <5 mm cat", "a >5 mm Cat"])
    assert len(encode_prompts(backbone, ["cat", "dog"]).tokens) == 2
