"""Classes in all their forms, without torch."""

from __future__ import annotations

import doctest

import pytest

import deop.api.vocabulary
from deop.api.vocabulary import vocabulary
from deop.errors import DeopError


def test_examples_in_the_docstrings_hold():
    tried = doctest.testmod(deop.api.vocabulary)
    assert tried.attempted >= 3 and tried.failed == 0


@pytest.mark.parametrize(
    ("classes", "background", "message"),
    [
        ([], None, "none are given"),
        (["bear", ""], None, "'' is no name"),
        (["bear", "Bear"], None, "'Bear' is given twice"),
        ("bear,,grass", None, "has an empty name"),
        (7, None, "7 is no list of names"),
        (["bear", 3], None, "3 is no name"),
        (["bear"], 1.5, "background=1.5: a threshold is a probability"),
        ({"bear": ["bear", "grizzly"]}, 0.5, "background=0.5: a threshold needs two classes"),
        (["bear"], True, "background=True"),
        (["bear", "background"], "sky", "leave one out"),
        ({"bear": ["grizzly", "grizzly"]}, None, "'grizzly' is given twice"),
    ],
)
def test_what_cannot_be_meant_is_said(classes, background, message):
    with pytest.raises(DeopError, match=message):
        vocabulary(classes, background)


def test_commas_are_part_of_names_in_a_list():
    assert vocabulary(["noise, of a kind", "bear"]).classes == ("noise, of a kind", "bear")
