"""Class prompts: the template with a class name in its one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddlp.data.prompts import class_prompts
from feddlp.errors import UserError

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
