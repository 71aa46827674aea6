"""What a segmenter says about one picture."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deop.data.coco_results import entries
from deop.data.segmentation import write_label_map
from deop.errors import DeopError
from deop.reporting.overlay import overlay, pixels_of
from deop.utils.files import whole_file, write_json

if TYPE_CHECKING:
    from PIL import Image


class Segmentation:
    """A segmented picture of H x W pixels in C classes.

    Examples:
        >>> labels = np.array([[0, 0], [0, 1]], np.uint8)
        >>> probabilities = np.array([[[1, 1], [0.5, 0.25]], [[0, 0], [0.5, 0.75]]])
        >>> picture = np.zeros((2, 2, 3), np.uint8)
        >>> result = Segmentation(labels, ["bear", "grass"], probabilities, picture, "an example")
        >>> result
        Segmentation(2 x 2 pixels: bear 75%, grass 25%)
        >>> result.scores["grass"], result.masks["grass"].sum()
        (0.75, np.int64(1))
        >>> result.to_coco()["annotations"][1]["bbox"]
        [1, 1, 1, 1]

    Attributes:
        labels: (H, W) unsigned integers, the index of each pixel's class in ``classes``.
        classes: names in the order of labels; ``background``, if it was asked for, is the last.
        picture: (H, W, 3) uint8 RGB, upright.
        system: the name of the system.

    Args:
        probabilities: (C, h, w) of each class, in [0, 1], over the picture.
    """

    def __init__(
        self,
        labels: np.ndarray,
        classes: list[str],
        probabilities: np.ndarray,
        picture: np.ndarray,
        system: str,
    ) -> None:
        self.labels, self.classes, self.picture, self.system = labels, classes, picture, system
        self._probabilities = probabilities

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{name} {share:.0%}" for name, share in self.areas.items() if share)
        return f"Segmentation({width} x {height} pixels: {found})"

    @property
    def heatmaps(self) -> dict[str, np.ndarray]:
        """By class, its probability (h, w) over the picture, float32, at the resolution that the network computes."""
        return dict(zip(self.classes, self._probabilities, strict=True))

    @cached_property
    def areas(self) -> dict[str, float]:
        """By class, its share of the picture's pixels, largest first."""
        counts = pixels_of(self.labels, len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return {self.classes[index]: float(counts[index] / self.labels.size) for index in order}

    @cached_property
    def scores(self) -> dict[str, float]:
        """By class that occurs, its mean probability where it is the label."""
        height, width = self._probabilities.shape[-2:]
        rows = ((np.arange(height) + 0.5) * self.labels.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * self.labels.shape[1] / width).astype(int)
        sampled = self.labels[rows[:, None], columns]
        found = {}
        for index in np.unique(self.labels).tolist():
            values = self._probabilities[index]
            inside = sampled == index
            # What is smaller than the network's own pixels may lie between them all.
            found[self.classes[index]] = float(values[inside].mean() if inside.any() else values.max())
        return found

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """By class that occurs, where it is: (H, W) bool."""
        return {self.classes[index]: self.labels == index for index in np.unique(self.labels).tolist()}

    def plot(self) -> Image.Image:
        """The picture with classes in colour and a legend; notebooks show it."""
        return overlay(self.picture, self.labels, self.classes)

    def summary(self) -> dict[str, Any]:
        """What the result says in numbers: per class that occurs, its label, share of the picture and score."""
        height, width = self.labels.shape
        return {
            "system": self.system,
            "width": width,
            "height": height,
            "classes": [
                {
                    "label": self.classes.index(name),
                    "name": name,
                    "area": round(share, 6),
                    "score": round(self.scores[name], 6),
                }
                for name, share in self.areas.items()
                if share
            ],
        }

    def save(self, folder: str | Path, name: str = "segmentation") -> dict[str, Path]:
        """Writes a label map, an overlay and a summary; returns their paths by kind (``png``, ``overlay``, ``json``).

        Raises:
            DeopError: a folder that cannot be written to.
        """
        folder = Path(folder)
        paths = {
            "png": folder / f"{name}.png",
            "overlay": folder / f"{name}.overlay.jpg",
            "json": folder / f"{name}.json",
        }
        for kind, path in paths.items():
            self.write(path, kind)
        return paths

    def write(self, path: Path, kind: str) -> None:
        """Writes one file: ``png`` (label map), ``overlay`` (JPEG), ``json`` (summary), ``npz``, or ``coco``.

        Raises:
            DeopError: a file that cannot be written.
        """
        try:
            if kind == "json":
                write_json(path, self.summary())
            elif kind == "coco":
                write_json(path, self.to_coco())
            else:
                with whole_file(path) as temporary:
                    if kind == "png":
                        write_label_map(temporary, self.labels, 255 if len(self.classes) <= 256 else 65535)
                    elif kind == "npz":
                        np.savez_compressed(
                            temporary,
                            labels=self.labels,
                            classes=np.array(self.classes),
                            probabilities=self._probabilities.astype(np.float16),
                        )
                    else:
                        self.plot().save(temporary, quality=90, subsampling=0)
        except OSError as error:
            raise DeopError(f"{path} cannot be written: {error.strerror or error}") from None

    def to_coco(self, image_id: int = 1) -> dict[str, Any]:
        """The result as COCO has it: ``images``, ``categories`` and ``annotations`` with run-length encoded masks."""
        height, width = self.labels.shape
        found = entries(self.labels.astype(np.int64), image_id, range(1, len(self.classes) + 1))
        for number, entry in enumerate(found, start=1):
            name = self.classes[entry["category_id"] - 1]
            rows, columns = np.nonzero(self.labels == entry["category_id"] - 1)
            left, top = int(columns.min()), int(rows.min())
            entry |= {
                "id": number,
                "iscrowd": 0,
                "area": len(rows),
                "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                "score": self.scores[name],
            }
        return {
            "images": [{"id": image_id, "width": width, "height": height}],
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.classes, start=1)],
            "annotations": found,
        }

    def to_supervision(self) -> Any:
        """The result as ``supervision.Detections``, one for each class that occurs.

        Raises:
            DeopError: the package supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError:
            raise DeopError("to_supervision() needs a package: pip install supervision") from None
        masks = self.masks
        stacked = np.stack(list(masks.values()))
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(stacked).astype(np.float32),
            mask=stacked,
            confidence=np.array([self.scores[name] for name in masks], np.float32),
            class_id=np.array([self.classes.index(name) for name in masks]),
            data={"class_name": np.array(list(masks))},
        )

    def _repr_png_(self) -> bytes:
        import io

        buffer = io.BytesIO()
        self.plot().save(buffer, "PNG")
        return buffer.getvalue()
