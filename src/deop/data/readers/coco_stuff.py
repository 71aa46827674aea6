"""COCO-Stuff 164k: the images of COCO 2017 and the label maps of ``stuffthingmaps``.

Ids are those of COCO-Stuff's ``labels.txt`` less one, 0 to 181, and 255 where there is none. Eleven of the 182 were
never annotated; as in earlier work, they are no classes.
"""

from __future__ import annotations

from pathlib import Path

from deop.data.label_maps import read_index_image
from deop.data.raw_dataset import RawDataset, SplitFiles, files, published_dataset
from deop.settings.datasets import RealDataset, dataset

_PUBLISHED = {"train": 118_287, "val": 5_000}


class CocoStuff(RealDataset):
    """COCO-Stuff 164k: 171 classes, 15 of them unseen (section 5)."""

    TITLE = "COCO-Stuff 164k"

    def sources(self) -> tuple[str, ...]:
        return (*(f"coco_{split}2017" for split in self.splits), "coco_stuffthingmaps")


@dataset(CocoStuff)
def open_dataset(settings: CocoStuff, root: Path) -> RawDataset:
    """The dataset below ``root``: ``coco/{train,val}2017`` and ``coco/stuffthingmaps/{train,val}2017``."""

    def split_files(split: str) -> SplitFiles:
        folders = (root / "coco" / f"{split}2017", root / "coco" / "stuffthingmaps" / f"{split}2017")
        return SplitFiles(files(folders[0], ".jpg"), files(folders[1], ".png"), folders, _PUBLISHED[split])

    return published_dataset(
        settings, root, "coco_stuff", split_files, ids=range(182), void=255, read=read_index_image
    )
