"""The system that the package brings: it names what is in scenes that it has never seen, without any download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import deop
from deop.data.emoji.dataset import draw_scene, plan_split
from deop.data.emoji.settings import EmojiScenes
from deop.errors import DeopError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def segmenter():
    return deop.load("deop-mini", device="cpu")


@pytest.mark.slow
def test_it_names_most_of_what_is_in_new_scenes(segmenter):
    words = yaml.safe_load((ROOT / "config/vocabularies/es171.yaml").read_text())
    settings = EmojiScenes(style="twemoji", vocabulary=words, train=0, val=10, image_size=96, seed=4321)
    plan = plan_split(settings, "val")
    right, in_words = [], []
    for index, (things, stuff) in enumerate(plan):
        image, truth = draw_scene(settings, "val", index, things, stuff)
        labelled = truth >= 0
        out = segmenter(image)
        assert out.classes == list(settings.vocabulary.names)
        right.append((out.labels == truth)[labelled].mean())
        # Asked for these alone, in another order.
        words = sorted({*things, *stuff})
        few = segmenter(image, words)
        names = np.array(words)[few.labels]
        in_words.append((names == np.array(settings.vocabulary.names)[truth])[labelled].mean())
    assert np.mean(right) > 0.5  # of 171 names
    assert np.mean(in_words) > np.mean(right)


def test_its_card_says_what_it_knows(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Trained on 156 classes" in card and "hIoU" in card
    with pytest.raises(DeopError, match="severance cannot be changed"):
        deop.load("deop-mini", severance="none")
