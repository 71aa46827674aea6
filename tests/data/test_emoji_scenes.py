"""EmojiScenes: what a user of the dataset relies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from deop.data.emoji import dataset as emoji_scenes
from deop.data.emoji.artwork import STYLES, concepts, draw
from deop.data.emoji.captioned import CaptionedScenes
from deop.data.emoji.scenes import Placement, compose
from deop.data.emoji.settings import EmojiScenes
from deop.data.emoji.textures import draw_texture, texture_names
from deop.data.segmentation import HIDDEN, IGNORE, SegmentationDataset
from deop.errors import DeopError
from deop.settings.datasets import Vocabulary

VOCABULARY = Vocabulary(things=("dog", "cow", "carrot", "key"), stuff=("grass", "sky"), unseen=("cow", "sky"))
SETTINGS = EmojiScenes(style="twemoji", vocabulary=VOCABULARY, train=14, val=6, image_size=64, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    emoji_scenes.write(folder, "toy", SETTINGS)
    return folder


def test_there_are_concepts_for_the_largest_vocabulary_and_none_is_a_repeat():
    names = [concept.name for concept in concepts()]
    assert len(set(names)) == len(names)
    assert len(names) + len(texture_names()) >= 847
    assert not set(names) & set(texture_names())
    codes = " ".join(concept.code for concept in concepts()).split()
    assert not any("1f3fb" in code or "1f1e6" in code or "20e3" in code for code in codes)
    assert not [
        name for name in names if "skin tone" in name or name.startswith("flag:") or "o'clock" in name
    ]


@pytest.mark.parametrize("style", STYLES)
def test_artwork_fills_its_square_and_differs_between_artists(style):
    picture = draw("giraffe", style, 48)
    rows, columns = picture[..., 3].max(1) > 128, picture[..., 3].max(0) > 128
    assert picture.shape == (48, 48, 4)
    assert max(rows.sum(), columns.sum()) >= 46
    other = draw("giraffe", STYLES[1 - STYLES.index(style)], 48)
    assert np.abs(picture.astype(int) - other).mean() > 5


def test_paper_vocabularies_have_the_papers_sizes_and_can_be_drawn():
    drawable = {concept.name for concept in concepts()} | set(texture_names())
    for name, size, unseen in (("es171", 171, 15), ("es20", 20, 5)):
        with open(f"config/vocabularies/{name}.yaml", encoding="utf-8") as file:
            vocabulary = Vocabulary.model_validate(yaml.safe_load(file))
        assert (len(vocabulary.names), len(vocabulary.unseen)) == (size, unseen)
        assert set(vocabulary.names) <= drawable
        if vocabulary.stuff:
            assert set(vocabulary.unseen) & set(vocabulary.things)
            assert set(vocabulary.unseen) & set(vocabulary.stuff)


def test_the_same_seed_gives_the_same_files(root, tmp_path):
    emoji_scenes.write(tmp_path, "toy", SETTINGS, workers=2)
    written = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert written == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((root / path).read_bytes() == (tmp_path / path).read_bytes() for path in written)


def test_train_and_validation_share_no_scene():
    train = [emoji_scenes.draw_scene(SETTINGS, "train", 0, ["dog"], ["grass"])[0] for _ in range(2)]
    val = emoji_scenes.draw_scene(SETTINGS, "val", 0, ["dog"], ["grass"])[0]
    assert np.array_equal(*train)
    assert not np.array_equal(train[0], val)


def test_label_map_is_where_the_object_is():
    """A plain square pasted without rotation covers the pixels that its placement says."""
    placement = Placement(centre=(0.5, 0.25), size=0.25, angle=0.0, flip=False, brightness=1.0)
    _, owner = compose(torch.zeros(1, 3, 64, 64), [[("red square", placement)]], ["twemoji"])
    covered = (owner[0] == 0).nonzero()
    assert covered.min(0).values.tolist() == pytest.approx([24, 8], abs=1)
    assert covered.max(0).values.tolist() == pytest.approx([39, 23], abs=1)


def test_every_class_is_equally_frequent():
    settings = SETTINGS.model_copy(update={"val": 100})
    scenes = emoji_scenes.plan_split(settings, "val")
    counts = {name: sum(name in things for things, _ in scenes) for name in VOCABULARY.things}
    assert max(counts.values()) - min(counts.values()) <= 8


def test_training_sees_no_unseen_class_and_validation_sees_all(root):
    train, val = SegmentationDataset(root, "train", seen_only=True), SegmentationDataset(root, "val")
    assert train.names == ["dog", "carrot", "key", "grass"]
    labels = torch.cat([train[index].label.unique() for index in range(len(train))]).unique().tolist()
    assert set(labels) == {HIDDEN, 0, 1, 2, 3}
    whole = SegmentationDataset(root, "train")
    only_unseen = [entry for entry in whole.entries if not set(entry.classes) - set(whole.card.unseen)]
    assert len(train) == len(whole) - len(only_unseen)
    assert val.names == list(VOCABULARY.names)
    assert set(torch.cat([val[index].label.unique() for index in range(len(val))]).tolist()) >= {1, 5}


def test_seen_labels_agree_with_the_whole_map(root):
    whole, train = SegmentationDataset(root, "train"), SegmentationDataset(root, "train", seen_only=True)
    by_image = {entry.image: index for index, entry in enumerate(whole.entries)}
    for index, entry in enumerate(train.entries):
        raw, seen = whole[by_image[entry.image]].label, train[index].label
        for position, name in enumerate(train.names):
            assert torch.equal(seen == position, raw == whole.names.index(name))


def test_background_is_ignored_where_stuff_is_not_labelled(tmp_path):
    settings = SETTINGS.model_copy(
        update={
            "label_stuff": False,
            "vocabulary": Vocabulary(things=VOCABULARY.things),
            "train": 0,
            "val": 3,
        }
    )
    emoji_scenes.write(tmp_path, "things", settings)
    assert all((SegmentationDataset(tmp_path, "val")[index].label == IGNORE).any() for index in range(3))


def test_vocabularies_of_256_and_more_use_16_bit_maps(tmp_path):
    things = tuple(concept.name for concept in concepts()[:300])
    settings = SETTINGS.model_copy(
        update={"vocabulary": Vocabulary(things=things), "train": 0, "val": 90, "label_stuff": False}
    )
    emoji_scenes.write(tmp_path, "many", settings)
    dataset = SegmentationDataset(tmp_path, "val")
    assert Image.open(dataset.entries[0].label).mode.startswith("I")
    shown = {label for index in range(90) for label in dataset[index].label.unique().tolist()}
    assert max(shown) > 255 and min(shown) == IGNORE


def test_scenes_need_things():
    values = SETTINGS.model_dump() | {"vocabulary": {"stuff": ["grass"], "things": []}}
    with pytest.raises(ValidationError, match="things are needed"):
        EmojiScenes.model_validate(values)


def test_unknown_class_is_named_before_anything_is_drawn(tmp_path):
    settings = SETTINGS.model_copy(update={"vocabulary": Vocabulary(things=("girafe",))})
    with pytest.raises(DeopError, match=r"girafe.*giraffe"):
        emoji_scenes.write(tmp_path, "typo", settings)
    assert not list(tmp_path.iterdir())


def test_a_damaged_dataset_is_named(root, tmp_path):
    with pytest.raises(DeopError, match=r"dataset\.json"):
        SegmentationDataset(tmp_path, "val")
    with pytest.raises(DeopError, match=r"test\.csv"):
        SegmentationDataset(root, "test")


def test_a_scene_drawn_larger_is_the_same_scene():
    for index, scene in enumerate(emoji_scenes.plan_split(SETTINGS, "val")):
        image, label = emoji_scenes.draw_scene(SETTINGS, "val", index, *scene)
        large, labels = emoji_scenes.draw_scene(SETTINGS, "val", index, *scene, detail=5)
        assert large.shape == (320, 320, 3) and labels.shape == (320, 320)
        reduced = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX)).astype(int)
        assert np.abs(reduced - image).mean() < 10  # of 255; another scene differs by more than 50
        assert (labels[2::5, 2::5] == label).mean() > 0.97


def test_captions_name_what_is_shown_and_the_stream_never_repeats():
    stream = CaptionedScenes(image_size=32, batch_size=24, objects=(1, 2), steps=2, seed=0, textures=2)
    first, again, second = stream[0], stream[0], stream[1]
    assert torch.equal(first["image"], again["image"]) and first["caption"] == again["caption"]
    assert not torch.equal(first["image"], second["image"])
    _, shown = stream.scenes(0)
    for names, caption in zip(shown, first["caption"], strict=True):
        assert all(name in caption for name in names)
    everything = [name for names in shown for name in names]
    assert len(everything) == len(set(everything))  # no caption fits another image's emoji


def test_cluttered_scenes_have_a_caption_for_each_name():
    stream = CaptionedScenes(
        image_size=32, batch_size=24, objects=(1, 4), steps=1, seed=0, scenes="cluttered", textures=2
    )
    batch, (_, shown) = stream[0], stream.scenes(0)
    assert batch["match"].shape == (24, len(batch["caption"])) and batch["match"].any(0).all()
    for row, names in zip(batch["match"], shown, strict=True):
        said = [batch["caption"][index] for index in row.nonzero()[:, 0]]
        assert all(any(name in caption for caption in said) for name in names)
        assert len(names) <= len(said) <= len(names) + 2  # and one or two textures
    assert len(set(batch["caption"])) == len(batch["caption"])


def test_common_emoji_are_shown_more_often():
    common = tuple(concept.name for concept in concepts()[:100])
    stream = CaptionedScenes(
        image_size=16,
        batch_size=64,
        objects=(1, 1),
        steps=1,
        seed=0,
        common=common,
        common_share=0.5,
        textures=1,
    )
    shown = [name for names in stream.scenes(0)[1] for name in names]
    assert 0.3 < sum(name in common for name in shown) / len(shown) < 0.7


@pytest.mark.parametrize("style", STYLES)
def test_textures_can_be_told_apart(style):
    """Nearest mean colour and contrast already separate most of forty textures: they are not forty noises."""
    rng = np.random.default_rng(0)

    def describe(picture):
        pixels = picture.reshape(-1, 3).astype(float)
        return np.concatenate([pixels.mean(0), pixels.std(0)])

    names = texture_names()
    references = np.array(
        [np.mean([describe(draw_texture(n, style, 64, rng)) for _ in range(3)], 0) for n in names]
    )
    hits = sum(
        np.linalg.norm(references - describe(draw_texture(name, style, 64, rng)), axis=1).argmin() == index
        for index, name in enumerate(names)
    )
    assert hits >= 0.6 * len(names)
