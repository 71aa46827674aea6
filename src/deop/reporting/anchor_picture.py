"""A picture of CLIP's attention and of classification anchors: the paper's figure 5, for one system.

A row is a segment, which is all pixels of one class in one validation image. Its columns are the image, the
self-attention of two patches i and j of the segment in the last layer of plain CLIP, the proposal of the segment and
the proposal's anchor heatmap.

:data:`RULE` says how rows and patches are chosen. It asks for the segment whose proposal is best, so the proposals are
better than usual by choice: the figure is about heatmaps, and the mean best IoU of proposals is measured elsewhere.
"""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from deop.data.card import DatasetCard
from deop.data.segmentation import SegmentationDataset
from deop.data.transforms import resize_short_side
from deop.errors import DeopError
from deop.methods.base import Segmenter, normalise, to_multiple
from deop.methods.deop import DeOP
from deop.reporting.picture import Picture, proposal_masks, proposal_overlaps

COVERED = (0.05, 0.35)
"""The part of an image that a segment may cover to be shown: large enough to see, small enough to be a part."""
CANDIDATES = 200
"""How many images of a class are looked at, so that large validation sets do not take hours."""
RULE = (
    "Rows and patches are chosen by rule, not by hand. Classes: the seen thing, the unseen thing and the unseen stuff "
    f"that the most validation images show on {COVERED[0]:.0%} to {COVERED[1]:.0%} of their area (where things or "
    f"stuff are missing, the other kind). Image: of the first {CANDIDATES} of these, the one whose best proposal has "
    "the highest IoU with the class, so proposals are better here than usual. Patch i: in the segment, where the "
    "anchor heatmap is highest. Patch j: the patch of the segment farthest from i."
)
_READING = (
    "Attention is the mean over the heads, without the class token. Heatmaps go from 0 (dark) to their own maximum "
    "(bright); the outline is the labelled segment, the percentage how much of a heatmap's sum lies on it."
)
_COLUMNS = ("image", "CLIP attention of i", "CLIP attention of j", "proposal", "anchor heatmap")
_MARKS = ("white", "cyan")  # of patches i and j


class Row(NamedTuple):
    """What one row of the figure shows.

    Attributes:
        segment: class index; ``image`` is the image's place in the validation set.
        query: which proposal, with its IoU ``overlap``; ``predicted`` is the class that the system gives it.
        pixels, truth: (3, H, W) uint8 and (H, W) bool, the image and the segment.
        mask: (H, W) probabilities of the proposal.
        patches: i and j, each (row, column) on CLIP's patch grid.
        attentions: (2, h, w) attention of i and j to the patches; each sums to 1.
        heatmap: (h, w) the anchor heatmap, mean over heads; sums to 1.
        shares: how much of the attention of i, of j and of the anchor heatmap lies on the segment: the sum over
            patches of the value times the part of the patch that is the segment.
    """

    segment: int
    image: int
    query: int
    overlap: float
    predicted: int
    pixels: Tensor
    truth: Tensor
    mask: Tensor
    patches: tuple[tuple[int, int], tuple[int, int]]
    attentions: Tensor
    heatmap: Tensor
    shares: tuple[float, float, float]


def draw(segmenter: Segmenter, dataset: SegmentationDataset, short_side: int) -> Picture:
    """Figure 5 of a system with classification anchors; images are resized to ``short_side`` pixels for it.

    Raises:
        DeopError: a system without anchors, or a dataset without a segment of the size that is shown.
    """
    if not isinstance(segmenter, DeOP) or segmenter.anchors is None:
        raise DeopError("picture of kind anchors: the system has no classification anchors to show")
    images = candidate_images(dataset)
    classes = choose_classes({segment: len(found) for segment, found in images.items()}, dataset.card)
    if not classes:
        low, high = COVERED
        raise DeopError(f"{dataset.root}: no class covers {low:.0%} to {high:.0%} of a validation image")
    rows = [choose_row(segmenter, dataset, segment, images[segment], short_side) for segment in classes]
    return Picture(_figure(rows, dataset), {"rule": RULE, "rows": [_values(row, dataset) for row in rows]})


def candidate_images(dataset: SegmentationDataset) -> dict[int, list[int]]:
    """By class, the images of which it covers a share within :data:`COVERED`; classes without any are left out."""
    found: dict[int, list[int]] = {}
    for index in range(len(dataset)):
        label = dataset[index].label
        for segment in dataset.entries[index].classes:
            if COVERED[0] <= (label == segment).double().mean().item() <= COVERED[1]:
                found.setdefault(segment, []).append(index)
    return found


def choose_classes(images: dict[int, int], card: DatasetCard) -> list[int]:
    """One seen class and up to two unseen ones, in this order, from the number of images of each class.

    The seen one is a thing, the unseen ones are a thing and stuff, each the one with the most images; in the place of
    a kind that is missing comes the class with the most images left. Of equals, the first in label order.
    """
    by_images = sorted(images, key=lambda segment: (-images[segment], segment))

    def choose(among: list[int], kinds: list[str]) -> list[int]:
        chosen: list[int] = []
        for kind in kinds:
            rest = [segment for segment in by_images if segment in among and segment not in chosen]
            chosen += ([segment for segment in rest if card.classes[segment].kind == kind] or rest)[:1]
        return chosen

    return choose(card.seen, ["thing"]) + choose(card.unseen, ["thing", "stuff"])


def choose_row(
    segmenter: DeOP, dataset: SegmentationDataset, segment: int, images: list[int], short_side: int
) -> Row:
    """Of the first :data:`CANDIDATES` images, the one whose best proposal covers the class best, and its heatmaps."""
    best: tuple[float, int, int] | None = None
    for index in images[:CANDIDATES]:
        image, label = dataset[index]
        output = segmenter(resize_short_side(image[None].float() / 255, short_side), dataset.names)
        overlaps = proposal_overlaps(
            label, segment, proposal_masks(output.mask_logits[0], tuple(label.shape))
        )
        overlap, query = overlaps.max(0)
        if best is None or overlap.item() > best[0]:
            best = (overlap.item(), index, int(query))
    overlap, index, query = best
    return _look_at(segmenter, dataset, segment, index, query, overlap, short_side)


def choose_patches(covered: Tensor, heatmap: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Patches i and j, each (row, column): where the heatmap is highest in the segment, and the farthest from there.

    A patch is of the segment if at least half of it is. Of a segment so thin that it has fewer than two such patches,
    those with the largest part count. Of equals, the first in reading order.

    Args:
        covered: (h, w) the part of each patch that is the segment.
        heatmap: (h, w).
    """
    inside = covered >= min(0.5, covered.flatten().topk(2).values[1].item())
    rows, columns = inside.nonzero().unbind(1)
    first = heatmap[rows, columns].argmax()
    distance = (rows - rows[first]) ** 2 + (columns - columns[first]) ** 2
    second = distance.argmax()
    return (int(rows[first]), int(columns[first])), (int(rows[second]), int(columns[second]))


def _look_at(
    segmenter: DeOP,
    dataset: SegmentationDataset,
    segment: int,
    index: int,
    query: int,
    overlap: float,
    short_side: int,
) -> Row:
    image, label = dataset[index]
    inputs = resize_short_side(image[None].float() / 255, short_side)
    output = segmenter(inputs, dataset.names)
    heatmap = output.heatmaps[0, query].mean(0)
    grid = tuple(heatmap.shape)
    truth = label == segment
    covered = F.interpolate(truth[None, None].float(), grid, mode="area")[0, 0]
    patches = choose_patches(covered, heatmap)
    # Plain CLIP, as in the paper: the same input as the system's, without prompts or severance.
    seen = normalise(to_multiple(inputs, segmenter.clip.patch_size), segmenter.mean, segmenter.std)
    attention = segmenter.clip.patch_attention(seen)[0].mean(0)[1:, 1:].unflatten(1, grid).unflatten(0, grid)
    attentions = torch.stack([attention[patch] for patch in patches])
    attentions = attentions / attentions.sum((1, 2), keepdim=True)
    heatmap = heatmap / heatmap.sum()
    return Row(
        segment=segment,
        image=index,
        query=query,
        overlap=overlap,
        predicted=int(output.class_logits[0, query, :-1].argmax()),
        pixels=image,
        truth=truth,
        mask=proposal_masks(output.mask_logits[0], tuple(label.shape))[query],
        patches=patches,
        attentions=attentions,
        heatmap=heatmap,
        shares=tuple((weights * covered).sum().item() for weights in (*attentions, heatmap)),
    )


def _values(row: Row, dataset: SegmentationDataset) -> dict[str, Any]:
    """A row for JSON: fractions in [0, 1], patches as [row, column] on a grid of [rows, columns]."""
    names = ("attention_i", "attention_j", "anchor_heatmap")
    return {
        "class": dataset.names[row.segment],
        "unseen": row.segment in dataset.card.unseen,
        "image": dataset.image_name(row.image),
        "covers": round(row.truth.double().mean().item(), 4),
        "proposal": row.query,
        "proposal_iou": round(row.overlap, 4),
        "proposal_class": dataset.names[row.predicted],
        "grid": list(row.heatmap.shape),
        "patch_i": list(row.patches[0]),
        "patch_j": list(row.patches[1]),
        "on_segment": {name: round(share, 4) for name, share in zip(names, row.shares, strict=True)},
    }


def _figure(rows: list[Row], dataset: SegmentationDataset) -> Figure:
    width, between, gap = 11.0, 0.1, 0.4  # inches, of the figure, between columns and between rows
    count = len(_COLUMNS)
    side = (width - (count - 1) * between) / count
    heights = [side * row.truth.shape[0] / row.truth.shape[1] for row in rows]
    # Axes are placed explicitly: a layout engine's positions vary in the last digit from run to run, and so would the
    # files.
    figure = Figure(figsize=(width, sum(heights) + (len(rows) - 1) * gap))
    axes = figure.subplots(
        len(rows),
        count,
        squeeze=False,
        height_ratios=heights,
        gridspec_kw={
            **{"left": 0, "right": 1, "bottom": 0, "top": 1},
            **{"wspace": between / side, "hspace": gap * len(rows) / sum(heights)},
        },
    )
    for axis, title in zip(axes[0], _COLUMNS, strict=True):
        axis.set_title(title, fontsize=11)
    for line, row in zip(axes, rows, strict=True):
        unseen = row.segment in dataset.card.unseen
        line[0].set_ylabel(
            textwrap.fill(dataset.names[row.segment], 18) + f"\n({'unseen' if unseen else 'seen'})",
            fontsize=11,
            fontweight="bold" if unseen else "normal",
        )
        _draw_row(line, row, dataset)
    notes = "\n".join(textwrap.fill(text, 222) for text in (RULE, _READING))
    below = -0.55 / figure.get_figheight()
    figure.text(-0.05, below, notes, fontsize=6.5, color="0.35", va="top")
    return figure


def _draw_row(axes: list[Axes], row: Row, dataset: SegmentationDataset) -> None:
    image, proposal = axes[0], axes[3]
    image.imshow(row.pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    image.set_xlabel(f"segment: {row.truth.double().mean():.0%} of the image", fontsize=8)
    _mark(image, row, (0, 1))
    grey = row.pixels.double().mean(0).numpy()
    dark = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    proposal.imshow(grey * (0.25 + 0.75 * (row.mask > 0.5).numpy()), **dark)
    answer = f"IoU {row.overlap:.2f}, classified as {dataset.names[row.predicted]}"
    proposal.set_xlabel(textwrap.fill(answer, 40), fontsize=8)
    height, width = row.truth.shape
    heatmaps = (*row.attentions, row.heatmap)
    for axis, heatmap, share in zip((axes[1], axes[2], axes[4]), heatmaps, row.shares, strict=True):
        axis.imshow(grey, **dark)
        axis.imshow(
            heatmap.numpy(),
            cmap="inferno",
            vmin=0,
            alpha=0.45
            + 0.5 * (heatmap / heatmap.max()).numpy(),  # the image shows where there is little heat
            interpolation="nearest",  # patches as they are
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        axis.contour(row.truth.numpy(), levels=[0.5], colors="white", linewidths=0.8)
        axis.set_xlabel(f"{share:.0%} on the segment", fontsize=8)
    _mark(axes[1], row, (0,))
    _mark(axes[2], row, (1,))
    for axis in axes:
        axis.set(xticks=[], yticks=[])


def _mark(axis: Axes, row: Row, which: tuple[int, ...]) -> None:
    """Draws squares around patches i (0) and j (1), each in its own colour."""
    height, width = (size / cells for size, cells in zip(row.truth.shape, row.heatmap.shape))
    for patch in which:
        y, x = row.patches[patch]
        left, top = x * width - 0.5, y * height - 0.5
        for colour, thick in (("black", 3.0), (_MARKS[patch], 1.5)):  # seen on light and dark ground
            square = Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=thick)
            axis.add_patch(square)
        on_left = x >= row.heatmap.shape[1] / 2  # the letter stays within the image
        axis.annotate(
            "ij"[patch],
            (left if on_left else left + width, top + height / 2),
            (-4 if on_left else 4, 0),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="center",
            fontsize=9,
            fontweight="bold",
            bbox={"facecolor": _MARKS[patch], "edgecolor": "black", "linewidth": 0.5, "pad": 1.2},
        )
