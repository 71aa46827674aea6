"""Small scenes in the on-disk layouts of real datasets, as their archives unpack: a few images each, true ids.

Every ``write_*`` function takes the data root and the numbers of images, and returns the ids that a reader has to find:
``{split: {key: (H, W) array}}``, with the id that stands for "no class" where there is none.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from deop.data.class_lists import read_class_list

Truth = dict[str, dict[str, np.ndarray]]
SIZES = ((96, 72), (72, 96), (80, 80))  # height, width


def class_ids(table: str) -> list[int]:
    return [row.raw_id for row in read_class_list(table)]


def in_turn(ids: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """Ids in random order, each once before any comes again, so that few scenes show many classes."""
    while True:
        yield from (int(ids[index]) for index in rng.permutation(len(ids)))


def draw_scene(ids: Sequence[int], void: int, size: tuple[int, int], rng: np.random.Generator):
    """An image (H, W, 3) uint8 with a colour a class, and its ids (H, W): a ground, shapes on it, a strip without."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    label = np.full(size, ids[0], np.int64)
    for position, value in enumerate(ids[1:]):
        cy, cx = rng.integers(height // 4, 3 * height // 4), rng.integers(width // 4, 3 * width // 4)
        reach = min(size) // 4
        if position % 2:
            inside = (abs(y - cy) < reach) & (abs(x - cx) < reach)
        else:
            inside = (y - cy) ** 2 + (x - cx) ** 2 < reach**2
        label[inside] = value
    label[:, -3:] = void
    colours = np.random.default_rng(7).integers(0, 256, (4096, 3))
    noise = rng.integers(-12, 13, (*size, 3))
    return np.clip(colours[label] + noise, 0, 255).astype(np.uint8), label


def scenes(count: int, ids: Sequence[int], void: int, seed: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    turn = in_turn(ids, rng)
    for index in range(count):
        yield draw_scene([next(turn) for _ in range(4)], void, SIZES[index % len(SIZES)], rng)


def save(picture: np.ndarray | Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_coco_stuff(root: Path, train: int = 8, val: int = 4) -> Truth:
    truth: Truth = {"train": {}, "val": {}}
    for seed, (split, count) in enumerate((("train", train), ("val", val))):
        for index, (image, label) in enumerate(scenes(count, class_ids("coco_stuff"), 255, seed)):
            key = f"{13 * index + seed + 9:012d}"
            save(image, root / f"coco/{split}2017/{key}.jpg")
            save(label.astype(np.uint8), root / f"coco/stuffthingmaps/{split}2017/{key}.png")
            truth[split][key] = label
    return truth


def voc_palette() -> list[int]:
    """VOC's colours: the bits of an index dealt to red, green and blue, the highest bits first; 255 is nearly white."""
    colours = np.zeros((256, 3), np.uint8)
    for index in range(256):
        for step in range(3):
            for channel in range(3):
                colours[index, channel] |= (index >> (3 * step + channel) & 1) << (7 - step)
    return colours.ravel().tolist()


def with_borders(label: np.ndarray) -> np.ndarray:
    """VOC's masks: a line of 255 around every object."""
    edges = np.zeros(label.shape, bool)
    edges[:, 1:] |= label[:, 1:] != label[:, :-1]
    edges[1:] |= label[1:] != label[:-1]
    return np.where(edges, 255, label)


def write_pascal_voc(root: Path, train: int = 4, sbd: int = 5, val: int = 3) -> Truth:
    """``sbd`` images that only SBD has masks of; its lists also name VOC's, some of them in the validation set."""
    voc, boundaries = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    truth: Truth = {"train": {}, "val": {}}
    ids = [0, *class_ids("pascal_voc")]
    keys = [f"2008_{index:06d}" for index in range(train + sbd + val)]
    in_voc = {"train": keys[:train], "val": keys[train + sbd :]}
    for key, (image, label) in zip(keys, scenes(len(keys), ids, 0, 2), strict=True):
        save(image, voc / f"JPEGImages/{key}.jpg")
        if key not in in_voc["train"] + in_voc["val"] or key in (keys[0], keys[-1]):
            # where VOC has a mask of its own, SBD's is another: all background
            segmentation = label if key in keys[train : train + sbd] else 0 * label
            part = {
                "Boundaries": np.empty((20, 1), object),
                "Segmentation": segmentation.astype(np.uint8),
                "CategoriesPresent": np.setdiff1d(segmentation, [0]).astype(np.uint8),
            }
            for position in range(20):
                part["Boundaries"][position, 0] = np.zeros(label.shape, np.uint8)
            (boundaries / "cls").mkdir(parents=True, exist_ok=True)
            savemat(boundaries / f"cls/{key}.mat", {"GTcls": part}, do_compression=True)
            save(image, boundaries / f"img/{key}.jpg")
            truth["train"][key] = segmentation
        for split, names in in_voc.items():
            if key in names:
                mask = Image.fromarray(with_borders(label).astype(np.uint8), "P")
                mask.putpalette(voc_palette())
                save(mask, voc / f"SegmentationClass/{key}.png")
                truth[split][key] = with_borders(label)
    truth["train"].pop(keys[-1], None)
    for split, names in in_voc.items():
        write_lines(voc / f"ImageSets/Segmentation/{split}.txt", names)
    write_lines(voc / "ImageSets/Segmentation/trainval.txt", in_voc["train"] + in_voc["val"])
    others = keys[train : train + sbd]
    write_lines(boundaries / "train.txt", [keys[0], *others[::2]])
    write_lines(boundaries / "val.txt", [*others[1::2], keys[-1]])
    return truth


def write_pascal_context(root: Path, train: int = 4, val: int = 3) -> Truth:
    """As it is read with 459 classes: 0 is no class. Frequent and other classes alternate."""
    voc, context = root / "VOCdevkit/VOC2010", root / "pascal_context"
    truth: Truth = {"train": {}, "val": {}}
    rng = np.random.default_rng(3)
    frequent = in_turn(class_ids("pascal_context_59"), rng)
    every = in_turn(class_ids("pascal_context_459"), rng)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            key = f"20{8 if split == 'train' else 9:02d}_{index:06d}"
            ids = [next(frequent), next(every), next(frequent), next(every)]
            image, label = draw_scene(ids, 0, SIZES[index % len(SIZES)], rng)
            save(image, voc / f"JPEGImages/{key}.jpg")
            (context / "trainval").mkdir(parents=True, exist_ok=True)
            savemat(
                context / f"trainval/{key}.mat", {"LabelMap": label.astype(np.uint16)}, do_compression=True
            )
            truth[split][key] = label
        write_lines(voc / f"ImageSets/Main/{split}.txt", truth[split])
    write_lines(
        context / "labels.txt",
        [f"{row.raw_id}: {row.original}" for row in read_class_list("pascal_context_459")],
    )
    return truth


def write_ade20k(root: Path, train: int = 6, val: int = 3) -> Truth:
    top = root / "ADEChallengeData2016"
    truth: Truth = {"train": {}, "val": {}}
    for seed, (split, count) in enumerate((("train", train), ("val", val)), start=10):
        folder = {"train": "training", "val": "validation"}[split]
        for index, (image, label) in enumerate(scenes(count, class_ids("ade20k_150"), 0, seed), start=1):
            key = f"ADE_{split}_{index:08d}"
            save(image, top / f"images/{folder}/{key}.jpg")
            save(label.astype(np.uint8), top / f"annotations/{folder}/{key}.png")
            truth[split][key] = label
    return truth


def write_ade20k_full(root: Path, train: int = 4, val: int = 3) -> Truth:
    """Every scene has an object that is none of the 847 classes."""
    top = root / "ADE20K_2021_17_01"
    truth: Truth = {"train": {}, "val": {}}
    index_file: dict[str, list[str]] = {"filename": [], "folder": []}
    rare = [value for value in range(1, 3000) if value not in set(class_ids("ade20k_847"))][:5]
    rng = np.random.default_rng(5)
    turn = in_turn(class_ids("ade20k_847"), rng)
    for split, count in (("train", train), ("val", val)):
        folder = {"train": "training", "val": "validation"}[split]
        for index in range(count):
            ids = [next(turn), next(turn), rare[index % 5], next(turn)]
            image, label = draw_scene(ids, 0, SIZES[index % len(SIZES)], rng)
            key, place = f"ADE_{split}_{index + 1:08d}", f"images/ADE/{folder}/urban/street"
            save(image, top / place / f"{key}.jpg")
            coded = np.stack(
                [label // 256 * 10, label % 256, np.arange(label.size).reshape(label.shape) % 5], -1
            )
            save(coded.astype(np.uint8), top / place / f"{key}_seg.png")
            save(np.zeros((*label.shape, 3), np.uint8), top / place / f"{key}_parts_1.png")
            save((label == ids[0]).astype(np.uint8), top / place / key / f"instance_000_{key}.png")
            (top / place / f"{key}.json").write_text(json.dumps({"annotation": {"filename": f"{key}.jpg"}}))
            index_file["filename"].append(f"{key}.jpg")
            index_file["folder"].append(f"ADE20K_2021_17_01/{place}")
            truth[split][key] = label
    (top / "index_ade20k.pkl").write_bytes(pickle.dumps(index_file))
    return truth


LAYOUTS: dict[str, Callable[..., Truth]] = {
    "coco_stuff": write_coco_stuff,
    "pascal_voc": write_pascal_voc,
    "pascal_context": write_pascal_context,
    "ade20k": write_ade20k,
    "ade20k_full": write_ade20k_full,
}
"""What writes a dataset, by the ``kind`` of its settings."""
