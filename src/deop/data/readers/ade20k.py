"""ADE20K as of the scene parsing challenge of 2016: 150 classes."""

from __future__ import annotations

from pathlib import Path

from deop.data.label_maps import read_index_image
from deop.data.raw_dataset import RawDataset, SplitFiles, files, published_dataset
from deop.settings.datasets import RealDataset, Spelling, dataset

_PUBLISHED = {"train": 20_210, "val": 2_000}
_FOLDERS = {"train": "training", "val": "validation"}


class Ade20k(RealDataset):
    """ADE20K as of the scene parsing challenge of 2016: 150 classes."""

    TITLE = "ADE20K (SceneParse150)"

    names: Spelling = "cleaned"

    def sources(self) -> tuple[str, ...]:
        return ("ade20k",)


@dataset(Ade20k)
def open_dataset(settings: Ade20k, root: Path) -> RawDataset:
    """The challenge's dataset below ``root``, in ``ADEChallengeData2016``."""

    def split_files(split: str) -> SplitFiles:
        top = root / "ADEChallengeData2016"
        folders = (top / "images" / _FOLDERS[split], top / "annotations" / _FOLDERS[split])
        return SplitFiles(files(folders[0], ".jpg"), files(folders[1], ".png"), folders, _PUBLISHED[split])

    return published_dataset(
        settings, root, "ade20k_150", split_files, ids=range(1, 151), void=0, read=read_index_image
    )
