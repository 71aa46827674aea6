"""What each kind of dataset may be told: generated scenes, the paper's datasets in their original form, a folder.

``names`` says what classes are called in prompts: ``original``, as the dataset's owners spell them, or ``cleaned``, as
English has it (``tvmonitor`` is a tv monitor; of synonyms the first). ADE20K's 150 classes can also have the names that
detectron2 gives them (``detectron2``). The authors' release evaluates with the original names, and on ADE20K's 150
classes with detectron2's. ``splits`` are those that are prepared: a
dataset that is only tested on needs no training images. ``complete`` false takes a dataset of which a part is there,
such as one's first trial; otherwise the published number of images has to be.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from deop.settings.base import Fraction, Positive, Settings


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("is a path that leads out of the data root")
    return path


Names = Literal["cleaned", "original"]
Spelling = Literal["cleaned", "original", "detectron2"]
"""All values of ``names``; which of them a dataset takes, its own settings say."""
Splits = Annotated[tuple[Literal["train", "val"], ...], Field(min_length=1)]
InRoot = Annotated[str, AfterValidator(_inside)]
Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]


class Vocabulary(Settings):
    """A class list in label order. ``things`` come first, then ``stuff``; ``unseen`` is a subset of both together."""

    things: tuple[str, ...]
    stuff: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.things + self.stuff

    @model_validator(mode="after")
    def _consistent(self) -> Vocabulary:
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(f"class names appear twice: {', '.join(repeated)}")
        unknown = sorted(set(self.unseen) - set(self.names))
        if unknown:
            raise ValueError(f"unseen classes that are not in things or stuff: {', '.join(unknown)}")
        return self


class EmojiScenes(Settings):
    """A generated dataset (docs/mini-profile.md). Sizes count scenes, ``image_size`` is in pixels."""

    kind: Literal["emoji_scenes"] = "emoji_scenes"
    style: Literal["twemoji", "openmoji"]
    vocabulary: Vocabulary
    train: Annotated[int, Field(ge=0)]
    val: Positive
    image_size: Positive = 96
    objects: tuple[Positive, Positive] = (2, 4)
    object_size: tuple[Fraction, Fraction] = (0.3, 0.6)
    label_stuff: bool = True
    seed: int = 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images."""
        return ("train", "val") if self.train else ("val",)

    @property
    def images(self) -> str:
        """What the images are, as notes under tables say it."""
        artwork = {"twemoji": "Twemoji", "openmoji": "OpenMoji"}[self.style]
        return f"generated EmojiScenes scenes, {artwork} artwork"


class RealDataset(Settings):
    """Base of datasets that are not generated: read in place, under ``data.root``, in the layout of their owners."""

    TITLE: ClassVar[str]

    names: Names = "cleaned"
    splits: Splits = ("train", "val")
    complete: bool = True

    @property
    def images(self) -> str:
        """What the images are and how classes are called, as notes under tables say it."""
        return f"{self.TITLE}, {self.names} class names"

    def sources(self) -> tuple[str, ...]:
        """What has to be there, by name in the catalogue of downloads (``data/downloads/sources.yaml``)."""
        return ()


class CocoStuff(RealDataset):
    """COCO-Stuff 164k: 171 classes, 15 of them unseen (section 5)."""

    TITLE = "COCO-Stuff 164k"

    kind: Literal["coco_stuff"]

    def sources(self) -> tuple[str, ...]:
        return (*(f"coco_{split}2017" for split in self.splits), "coco_stuffthingmaps")


class PascalVoc(RealDataset):
    """PASCAL VOC 2012 with the training masks of SBD: 20 classes, 5 of them unseen (section 5)."""

    TITLE = "PASCAL VOC 2012"

    kind: Literal["pascal_voc"]

    def sources(self) -> tuple[str, ...]:
        return ("voc2012", *(["sbd"] if "train" in self.splits else []))


class PascalContext(RealDataset):
    """PASCAL Context: all ``classes`` of 459, or the 59 frequent ones."""

    TITLE = "PASCAL Context"

    kind: Literal["pascal_context"]
    classes: Literal[59, 459]

    def sources(self) -> tuple[str, ...]:
        return ("voc2010", "pascal_context", "pascal_context_labels")


class Ade20k(RealDataset):
    """ADE20K as of the scene parsing challenge of 2016: 150 classes."""

    TITLE = "ADE20K (SceneParse150)"

    kind: Literal["ade20k"]
    names: Spelling = "cleaned"  # type: ignore[assignment]  # more spellings than others have

    def sources(self) -> tuple[str, ...]:
        return ("ade20k",)


class Ade20kFull(RealDataset):
    """All of ADE20K (release of January 2021), of which the 847 classes of earlier work."""

    TITLE = "ADE20K (2021_17_01)"

    kind: Literal["ade20k_full"]

    def sources(self) -> tuple[str, ...]:
        return ("ade20k_full",)


class FolderClass(Settings):
    """One class of a dataset in folders; ``id`` is its value in the label maps."""

    id: Annotated[int, Field(ge=0, le=65535)]
    name: Annotated[str, Field(min_length=1)]
    kind: Literal["thing", "stuff"] = "stuff"
    unseen: bool = False


class FolderSplit(Settings):
    """Where a split lies, relative to the dataset's ``root``.

    An image and its label map have the same path below their folders, but for the suffix. ``list`` names a text file
    with one such path a line, without suffix, for a split that is a part of what the folders hold.
    """

    images: str
    labels: str
    list: str | None = None


class Folder(Settings):
    """One's own dataset (docs/own-dataset.md): folders of images and of label maps with one id a pixel.

    ``root`` None is ``data.root``. ``classes`` are in label order, in place or as the path of a CSV file below ``root``
    with the columns id, name and, if wanted, kind and unseen. ``ignore`` are ids that are no class.
    """

    kind: Literal["folder"]
    root: str | None = None
    splits: Annotated[dict[Literal["train", "val"], FolderSplit], Field(min_length=1)]
    classes: str | Annotated[tuple[FolderClass, ...], Field(min_length=1)]
    ignore: tuple[Annotated[int, Field(ge=0, le=65535)], ...] = (255,)
    image_suffixes: Annotated[tuple[str, ...], Field(min_length=1)] = (".jpg", ".jpeg", ".png")
    label_suffixes: Annotated[tuple[str, ...], Field(min_length=1)] = (".png", ".tif", ".tiff")

    @property
    def images(self) -> str:
        """What the images are, as notes under tables say it."""
        return "images of one's own"

    def sources(self) -> tuple[str, ...]:
        """Nothing is downloaded."""
        return ()

    @model_validator(mode="after")
    def _consistent(self) -> Folder:
        if not isinstance(self.classes, str):
            check_classes(self.classes, self.ignore)
        return self


def check_classes(classes: tuple[FolderClass, ...], ignore: tuple[int, ...]) -> None:
    """Raises ``ValueError`` for an id or a name that two classes have, and for an id both a class and ignored."""
    for what in ("id", "name"):
        values = [getattr(entry, what) for entry in classes]
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"two classes have the {what} {', '.join(map(str, repeated))}")
    if both := sorted({entry.id for entry in classes} & set(ignore)):
        raise ValueError(f"ids that are a class and in ignore: {', '.join(map(str, both))}")


class SourceEntry(Settings):
    """One archive of the paper's datasets, as the catalogue (``data/downloads/sources.yaml``) or the configuration
    describes it.

    urls: where it is downloaded from, tried in this order; none for what is handed out on request.
    how_to_get: what there is to do where no URL is known.
    archive: its file name under ``<root>/archives``; two entries may take different members of one archive.
    format: ``tar`` may be compressed.
    bytes, hash: of the archive; None where they are not publicly known.
    into: folder under the root that its members are unpacked into.
    members: patterns of the members to unpack, all if empty.
    holds: patterns of files under the root, and how many there are of each once it is unpacked. A ``*`` stands for
        any part of one name that does not begin with a dot.
    """

    urls: tuple[str, ...] = ()
    how_to_get: str | None = None
    archive: Annotated[str, Field(pattern=r"^[^/.][^/]*$")]
    format: Literal["zip", "tar"]
    bytes: Positive | None = None
    hash: Digest | None = None
    into: InRoot = "."
    members: tuple[str, ...] = ()
    holds: Annotated[dict[InRoot, Positive], Field(min_length=1)]

    @property
    def folder(self) -> PurePosixPath:
        """The folder under the root that everything in ``holds`` lies in."""
        folders = [PurePosixPath(pattern.partition("*")[0] + "x").parent for pattern in self.holds]
        return next(
            above
            for above in (folders[0], *folders[0].parents)
            if all(folder.is_relative_to(above) for folder in folders)
        )


class Source(Settings):
    """What the stage ``download`` is told: an entry of the catalogue and where its files go.

    root: the folder of all datasets in their original form (``data.root``).
    mirrors: further URLs of the archive, tried before those of the entry.
    path: a copy elsewhere that takes the place of a download: the archive, or the folder that it was unpacked into.
    keep_archives: archives stay once they are unpacked. They take as much space again, but damaged files are mended
        without the network.
    """

    name: str
    root: str
    mirrors: tuple[str, ...] = ()
    path: str | None = None
    keep_archives: bool = True
    entry: SourceEntry


AnyDataset = EmojiScenes | RealDataset | Folder

DATASETS: dict[str, type[AnyDataset]] = {
    "emoji_scenes": EmojiScenes,
    "coco_stuff": CocoStuff,
    "pascal_voc": PascalVoc,
    "pascal_context": PascalContext,
    "ade20k": Ade20k,
    "ade20k_full": Ade20kFull,
    "folder": Folder,
}
"""The settings of a dataset by its ``kind``."""
