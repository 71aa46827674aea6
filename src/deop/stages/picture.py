"""Stage ``picture``: one validation scene on its way through the network: image, proposals, anchor heatmap, result."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deop.data.contact_sheet import class_colours, paint_labels
from deop.data.segmentation import IGNORE, SegmentationDataset
from deop.settings import Evaluation, Job
from deop.stages.artifacts import describe, write_json
from deop.stages.evaluate import resize_short_side
from deop.stages.networks import build_segmenter


def choose_scene(dataset: SegmentationDataset) -> int:
    """The first image with the most classes among those that show seen and unseen ones: a rule, not taste."""
    unseen = set(dataset.card.unseen)
    mixed = [
        index
        for index, entry in enumerate(dataset.entries)
        if 0 < len(unseen & set(entry.classes)) < len(entry.classes)
    ]
    return max(mixed or range(len(dataset)), key=lambda index: (len(dataset.entries[index].classes), -index))


def choose_segment(label: Tensor, masks: Tensor, unseen: list[int]) -> tuple[int, int]:
    """The largest unseen class of a label map (H, W), else the largest, and its best proposal of masks (N, H, W)."""
    classes, counts = label[label != IGNORE].unique(return_counts=True)
    is_unseen = torch.isin(classes, torch.tensor(unseen, dtype=classes.dtype))
    order = (is_unseen.long() * label.numel() + counts).argmax()
    truth, proposed = label == classes[order], masks > 0.5
    overlap = (truth & proposed).flatten(1).sum(1) / (truth | proposed).flatten(1).sum(1)
    return int(classes[order]), int(overlap.argmax())


@torch.inference_mode()
def run(job: Job) -> None:
    """Draws the picture of ``job``'s system (PNG) beside ``job.output``, its provenance (JSON, written last)."""
    settings = Evaluation.model_validate(job.settings["evaluation"])
    dataset = SegmentationDataset(job.inputs["data"], "val")
    segmenter = build_segmenter(job).eval()
    index = choose_scene(dataset)
    sample = dataset[index]
    images = resize_short_side(sample.image[None].float() / 255, settings.short_side)
    output = segmenter(images, dataset.names)
    size = tuple(sample.label.shape)
    prediction = segmenter.combine(output, size)[0].argmax(0)
    masks = F.interpolate(output.mask_logits, size, mode="bilinear", align_corners=False)[0].sigmoid()
    label, query = choose_segment(sample.label, masks, dataset.card.unseen)
    heatmap = output.heatmaps[0, query].mean(0)
    figure = _draw(
        sample.image.permute(1, 2, 0).numpy(),
        proposals=torch.where(masks.amax(0) > 0.5, masks.argmax(0), IGNORE).numpy(),
        heatmap=F.interpolate(heatmap[None, None], size, mode="bilinear")[0, 0].numpy(),
        prediction=prediction.numpy(),
        truth=sample.label.numpy(),
        names=[
            f"{name} (unseen)" if i in dataset.card.unseen else name for i, name in enumerate(dataset.names)
        ],
        heatmap_of=dataset.names[label],
        queries=len(masks),
    )
    path = Path(job.output).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
    temporary.rename(path)
    image_file = str(dataset.entries[index].image.relative_to(dataset.root))
    write_json(Path(job.output), {"key": job.key, "image": image_file, **describe(job)})


def _draw(
    image: np.ndarray,
    *,
    proposals: np.ndarray,
    heatmap: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray,
    names: list[str],
    heatmap_of: str,
    queries: int,
) -> plt.Figure:
    colours = class_colours(len(names))
    result = np.where(truth == IGNORE, IGNORE, prediction)  # what is not labelled is not measured either
    panels = [
        ("image", image, None),
        (f"proposals (of {queries})", paint_labels(image, proposals, class_colours(queries)), None),
        (f"anchor heatmap: {heatmap_of}", image, heatmap),
        ("result", paint_labels(image, result, colours), None),
        ("ground truth", paint_labels(image, truth, colours), None),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.2))
    for axis, (title, picture, heat) in zip(axes, panels, strict=True):
        axis.imshow(picture, interpolation="nearest")
        if heat is not None:
            axis.imshow(heat, cmap="inferno", alpha=0.7, interpolation="bilinear")
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    for axis, labels in ((axes[3], result), (axes[4], truth)):
        shown, counts = np.unique(labels[labels != IGNORE], return_counts=True)
        # A speck of a few pixels needs no name.
        for label in shown[counts > 0.01 * labels.size]:
            rows, columns = np.nonzero(labels == label)
            centre = np.median(rows), np.median(columns)
            axis.text(
                centre[1],
                centre[0],
                names[label],
                fontsize=7,
                ha="center",
                va="center",
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1},
            )
    return figure
