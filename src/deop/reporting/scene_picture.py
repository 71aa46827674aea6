"""A picture of one validation scene: image, proposals, anchor heatmap, result and ground truth."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from deop.data.segmentation import IGNORE, SegmentationDataset
from deop.data.transforms import resize_short_side
from deop.methods.base import Segmenter
from deop.reporting.contact_sheet import class_colours, paint_labels
from deop.reporting.picture import Picture, for_readers, proposal_masks, proposal_overlaps

RULE = (
    "Chosen by rule: the first validation image with the most classes among those that show seen and unseen ones, "
    "and in it the anchor heatmap of the proposal that covers the largest unseen class best."
)


def choose_scene(dataset: SegmentationDataset) -> int:
    """Index of the first image with the most classes, among those with seen and unseen ones if there are any."""
    unseen = set(dataset.card.unseen)
    mixed = [
        index
        for index, entry in enumerate(dataset.entries)
        if 0 < len(unseen & set(entry.classes)) < len(entry.classes)
    ]
    return max(mixed or range(len(dataset)), key=lambda index: (len(dataset.entries[index].classes), -index))


def choose_segment(label: Tensor, unseen: list[int]) -> int:
    """The unseen class with the most pixels of a label map (H, W), else the class with the most."""
    classes, counts = label[label != IGNORE].unique(return_counts=True)
    is_unseen = torch.isin(classes, torch.tensor(unseen, dtype=classes.dtype))
    return int(classes[(is_unseen.long() * label.numel() + counts).argmax()])


def draw(segmenter: Segmenter, dataset: SegmentationDataset, short_side: int) -> Picture:
    """The picture of a system that outputs a heatmap per proposal; the image is resized to ``short_side`` for it."""
    index = choose_scene(dataset)
    sample = dataset[index]
    output = segmenter(resize_short_side(sample.image[None].float() / 255, short_side), dataset.names)
    sample = for_readers(dataset, index)
    size = tuple(sample.label.shape)
    prediction = segmenter.label_map(output, size)[0]
    masks = proposal_masks(output.mask_logits[0], size)
    label = choose_segment(sample.label, dataset.card.unseen)
    overlaps = proposal_overlaps(sample.label, label, masks)
    query = int(overlaps.argmax())
    heatmap = output.heatmaps[0, query].mean(0)
    figure = _figure(
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
    shows = {
        "rule": RULE,
        "image": dataset.image_name(index),
        "class": dataset.names[label],
        "proposal": query,
        "proposal_iou": round(overlaps[query].item(), 4),
    }
    return Picture(figure, shows)


def _figure(
    image: np.ndarray,
    *,
    proposals: np.ndarray,
    heatmap: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray,
    names: list[str],
    heatmap_of: str,
    queries: int,
) -> Figure:
    colours = class_colours(len(names))
    result = np.where(truth == IGNORE, IGNORE, prediction)  # unlabelled pixels are not evaluated
    panels = [
        ("image", image, None),
        (f"proposals (of {queries})", paint_labels(image, proposals, class_colours(queries)), None),
        (f"anchor heatmap: {heatmap_of}", image, heatmap),
        ("result", paint_labels(image, result, colours), None),
        ("ground truth", paint_labels(image, truth, colours), None),
    ]
    figure = Figure(figsize=(3 * len(panels), 3.2))
    axes = figure.subplots(1, len(panels))
    for axis, (title, picture, heat) in zip(axes, panels, strict=True):
        axis.imshow(picture, interpolation="nearest")
        if heat is not None:
            axis.imshow(heat, cmap="inferno", alpha=0.7, interpolation="bilinear")
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    for axis, labels in ((axes[3], result), (axes[4], truth)):
        shown, counts = np.unique(labels[labels != IGNORE], return_counts=True)
        # Regions of a few pixels get no name.
        for label in shown[counts > 0.01 * labels.size]:
            # At the pixel farthest from the border, so that the name lies on its region.
            depth = distance_transform_edt(np.pad(labels == label, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            axis.text(
                column,
                row,
                names[label],
                fontsize=7,
                ha="center",
                va="center",
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1},
            )
    return figure
