"""The class tables of public datasets: sizes, ids, unseen classes, and how names are cleaned."""

from __future__ import annotations

import pytest

from deop.data.class_lists import FOLDER, labelled_classes, read_class_list
from deop.data.readers.ade20k import Ade20k
from deop.data.readers.ade20k_full import Ade20kFull
from deop.data.readers.coco_stuff import CocoStuff
from deop.data.readers.pascal_voc import PascalVoc

SIZES = {
    "coco_stuff": (171, 15),
    "pascal_voc": (20, 5),
    "pascal_context_59": (59, 0),
    "pascal_context_459": (459, 0),
    "ade20k_150": (150, 0),
    "ade20k_847": (847, 0),
}
# First synonyms that several classes have, or that nobody says; by id.
BY_HAND = {
    "ade20k_150": {90: "television"},
    "ade20k_847": {
        96: "handbag",
        97: "traveling bag",
        145: "basketball hoop",
        603: "control board",
        1139: "grille",
        1790: "terrace",
        1858: "wharf",
        1885: "tube",
        1981: "flowerpot",
        2254: "projection screen",
        2733: "television",
        3109: "crt screen",
    },
}


def cleaned(table: str) -> dict[str, str]:
    return {row.original: row.cleaned for row in read_class_list(table)}


@pytest.mark.parametrize("table", SIZES)
def test_sizes_are_the_papers_and_nothing_comes_twice(table):
    rows = read_class_list(table)
    assert (len(rows), sum(row.unseen for row in rows)) == SIZES[table]
    for column in ("raw_id", "original", "cleaned"):
        assert len({getattr(row, column) for row in rows}) == len(rows)
    assert {row.kind for row in rows} <= {"thing", "stuff"}
    assert all(name == " ".join(name.split()) for row in rows for name in (row.original, row.cleaned))


def test_every_table_is_tested():
    assert {path.stem for path in FOLDER.glob("*.csv")} == set(SIZES)


def test_unseen_classes_are_the_papers():
    unseen = "frisbee skateboard cardboard carrot scissors suitcase giraffe cow road wall-concrete tree grass river"
    rows = read_class_list("coco_stuff")
    assert {row.original for row in rows if row.unseen} == {*unseen.split(), "clouds", "playingfield"}
    # the ids that SimBaseline's release has for them
    ids = [20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171]
    assert [row.raw_id for row in rows if row.unseen] == ids
    names = {row.cleaned for row in read_class_list("pascal_voc") if row.unseen}
    assert names == {"potted plant", "sheep", "sofa", "train", "tv monitor"}


def test_ids_are_those_of_the_label_maps():
    coco = read_class_list("coco_stuff")
    never_annotated = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert [row.raw_id for row in coco] == sorted(set(range(182)) - never_annotated)
    assert sum(row.kind == "thing" for row in coco) == 80
    assert all((row.kind == "thing") == (row.raw_id < 91) for row in coco)
    for table in ("pascal_voc", "pascal_context_459", "ade20k_150"):
        rows = read_class_list(table)
        assert [row.raw_id for row in rows] == list(range(1, len(rows) + 1))
    assert {row.raw_id: row.original for row in read_class_list("ade20k_847")} | {
        2978: "wall",
        312: "building, edifice",
        3148: "adding machine, totalizer, totaliser",
    } == {row.raw_id: row.original for row in read_class_list("ade20k_847")}


def test_the_59_classes_of_context_are_among_the_459():
    every = {row.raw_id: row for row in read_class_list("pascal_context_459")}
    for row in read_class_list("pascal_context_59"):
        assert (row.cleaned, row.kind) == (every[row.raw_id].cleaned, every[row.raw_id].kind)
        assert row.original == every[row.raw_id].original or row.original == "diningtable"


@pytest.mark.parametrize("table", ["ade20k_150", "ade20k_847"])
def test_of_synonyms_the_first_is_used_but_for_a_reviewed_few(table):
    by_hand = BY_HAND[table]
    for row in read_class_list(table):
        synonyms = row.original.split(", ")
        assert row.cleaned == by_hand.get(row.raw_id, synonyms[0])
        assert row.cleaned in (*synonyms, "basketball hoop")


def test_detectron2_has_short_names_for_ade20k():
    """And for no other table. As in its ``ADE20K_SEM_SEG_CATEGORIES``, without spaces at ends."""
    rows = read_class_list("ade20k_150")
    assert len({row.detectron2 for row in rows}) == 150
    for row in rows:  # some of the synonyms, in their order
        synonyms, kept = row.original.split(", "), row.detectron2.split(", ")
        assert kept in ([synonym for synonym in synonyms if synonym in kept], ["pool"])
    some = {
        9: "window",
        14: "earth, ground",
        38: "tub",
        90: "tv",
        114: "falls",
        139: "trash can",
        142: "crt screen",
    }
    assert {row.raw_id: row.detectron2 for row in rows if row.raw_id in some} == some
    assert sum(row.original != row.detectron2 for row in rows) == 42
    assert sum(row.cleaned != row.detectron2 for row in rows) == 51
    for table in SIZES.keys() - {"ade20k_150"}:
        assert {row.detectron2 for row in read_class_list(table)} == {None}


def test_names_are_english():
    coco = cleaned("coco_stuff")
    assert coco["wall-concrete"] == "concrete wall" and coco["floor-wood"] == "wood floor"
    assert coco["wall-other"] == "wall" and coco["door-stuff"] == "door" and coco["clouds"] == "clouds"
    assert coco["playingfield"] == "playing field"
    assert not [name for name in coco.values() if "-" in name]
    assert cleaned("pascal_voc")["tvmonitor"] == "tv monitor"
    changed = {name: clean for name, clean in cleaned("pascal_context_459").items() if name != clean}
    assert changed == {
        "casette recorder": "cassette recorder",
        "fire place": "fireplace",
        "pottedplant": "potted plant",
        "tvmonitor": "tv monitor",
        "wineglass": "wine glass",
    }


@pytest.mark.parametrize("model", [CocoStuff, PascalVoc, Ade20k, Ade20kFull])
def test_settings_choose_names(model):
    table = {
        CocoStuff: "coco_stuff",
        PascalVoc: "pascal_voc",
        Ade20k: "ade20k_150",
        Ade20kFull: "ade20k_847",
    }[model]
    rows = read_class_list(table)
    for names in ("original", "cleaned"):
        classes = labelled_classes(table, model(kind=model.__module__, names=names).names)
        assert [entry.name for entry in classes] == [getattr(row, names) for row in rows]
        assert [entry.raw_id for entry in classes] == [row.raw_id for row in rows]
