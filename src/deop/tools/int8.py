"""``deop export --int8``: a graph in int8, calibrated on training images and measured on validation images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deop.data.segmentation import IGNORE, Sample, SegmentationDataset
from deop.data.transforms import resize_short_side
from deop.errors import DeopError
from deop.evaluation.metrics import SegmentationMetrics
from deop.methods.graph import GraphMetadata, Quantisation, Scores, save_openvino
from deop.methods.graph_segmenter import GraphSegmenter, read_graph
from deop.methods.inference import prepare
from deop.methods.int8 import quantised, require_nncf
from deop.utils.progress import progress_bar

_WORST_FALL = 0.005
"""Of hIoU, or of mIoU without unseen classes: half a point."""
_LEAST_SCORE = 0.01
"""Below which such a fall says nothing; with few classes, chance is above it."""


class Int8(NamedTuple):
    """What a graph in int8 is calibrated and measured on.

    Attributes:
        data: a prepared dataset.
        calibration_images: of its training split, at most.
        validation_images: of its validation split, at most; None is all.
    """

    data: Path
    calibration_images: int = 128
    validation_images: int | None = None

    def check(self) -> None:
        """Raises DeopError where NNCF is not installed, or the dataset is not there or lacks a split."""
        require_nncf()
        for split in ("train", "val"):
            if not len(SegmentationDataset(self.data, split)):
                raise DeopError(
                    f"--int8 {self.data}: {split}.csv lists no images; int8 is calibrated on training images and "
                    "measured on validation images"
                )


def quantise(
    model: str, path: Path, network: nn.Module, metadata: GraphMetadata, int8: Int8
) -> tuple[Path, Quantisation]:
    """Writes a graph in int8 beside the one in ``path``; returns where, and what that costs.

    Args:
        model: what the system is called in messages.
        path: the graph in float32 (.xml).
        network: the method that it was traced from.
        metadata: of that graph.

    Raises:
        DeopError: hIoU falls by more than half a point, or is no better than chance, so that a fall would not show.
    """
    train, validation = (SegmentationDataset(int8.data, split) for split in ("train", "val"))
    calibration = _spread(len(train), int8.calibration_images)
    tested = _spread(len(validation), int8.validation_images or len(validation))
    full = _for_any_words(path, network)
    text = {} if metadata.names else {"text": network.text_features(train.names).detach().float().numpy()}

    def inputs_of(index: int) -> dict[str, np.ndarray]:
        return text | {"images": full.fitted(_shown(train[index], full)).numpy()}

    made = quantised(path, network, calibration, inputs_of)
    target = path.with_name(f"int8-{path.name}")
    save_openvino(made, target, metadata)
    float32, in_int8, agreement = _compare(validation, tested, full, _for_any_words(target, network))
    cost = Quantisation(
        dataset=validation.card.name,
        calibration_images=len(calibration),
        validation_images=len(tested),
        float32=float32,
        int8=in_int8,
        agreement=agreement,
    )
    (name, before), (_, after) = cost.float32.main, cost.int8.main
    if before < max(_LEAST_SCORE, 1 / len(validation.names)):
        raise DeopError(
            f"{model}: has {name} {before:.2%} on {int8.data} in float32, no better than chance, so what int8 costs "
            "does not show; nothing was written. --int8 needs a trained system, and a dataset like its own"
        )
    if before - after > _WORST_FALL:
        raise DeopError(
            f"{model}: int8 takes {name} on {int8.data} from {before:.2%} to {after:.2%}, a fall of more than "
            f"{100 * _WORST_FALL:g} points; nothing was written"
        )
    save_openvino(made, target, metadata.model_copy(update={"quantisation": cost}))
    return target, cost


def _spread(images: int, most: int) -> list[int]:
    """Numbers of at most so many images, evenly over all."""
    return np.linspace(0, images - 1, min(images, most)).round().astype(int).tolist()


def _for_any_words(path: Path, network: nn.Module) -> GraphSegmenter:
    """The graph in a file with class embeddings as its input, also where it has a vocabulary of its own.

    What is computed in int8 is the same for all words, and those of a dataset need not be in that vocabulary.
    """
    graph = read_graph(path, torch.float32, lambda _: network)
    inference = graph.metadata.config.inference.model_dump(exclude={"short_side"})
    graph.metadata = graph.metadata.model_copy(update={"names": None})
    return prepare(graph, torch.device("cpu"), **inference)


def _shown(sample: Sample, graph: GraphSegmenter) -> Tensor:
    """The image (1, 3, h, w) in [0, 1] of a sample, resized as evaluation does."""
    return resize_short_side(sample.image[None].float() / 255, graph.metadata.config.inference.short_side)


def _compare(
    dataset: SegmentationDataset, indices: list[int], full: GraphSegmenter, low: GraphSegmenter
) -> tuple[Scores, Scores, float]:
    """The scores of two graphs on images of a dataset, and the share of pixels that they label alike."""
    metrics = [
        SegmentationMetrics(len(dataset.names), dataset.card.unseen, ignore=IGNORE) for _ in (full, low)
    ]
    equal = pixels = 0
    for index in progress_bar(indices, desc="measure"):
        sample = dataset[index]
        size = tuple(sample.label.shape)
        found = [graph.label(_shown(sample, graph), dataset.names, size) for graph in (full, low)]
        for of_one, labels in zip(metrics, found, strict=True):
            of_one.update(labels, sample.label[None])
        equal += int((found[0] == found[1]).sum())
        pixels += found[0].numel()
    return _scores(metrics[0]), _scores(metrics[1]), equal / pixels


def _scores(metrics: SegmentationMetrics) -> Scores:
    scores = metrics.compute()
    return Scores(hIoU=None if math.isnan(scores.hiou) else scores.hiou, mIoU=scores.miou)
