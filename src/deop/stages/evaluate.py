"""Stage ``evaluate``: a system on a validation set, all its classes seen and unseen as one vocabulary."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from deop.data.segmentation import IGNORE, SegmentationDataset
from deop.data.transforms import resize_short_side
from deop.evaluation.metrics import SegmentationMetrics, mean_best_iou
from deop.jobs.artifacts import describe
from deop.jobs.integrity import write_sealed
from deop.jobs.job import Job
from deop.methods.base import PixelOutput, Segmenter
from deop.methods.inference import prepare
from deop.methods.system import load_system, read_config
from deop.settings.stages import Evaluation
from deop.training.loop import make_accelerator
from deop.utils.files import write_text
from deop.utils.progress import progress_bar


def run(job: Job) -> None:
    """Writes the scores of ``job``'s system as JSON to ``job.output``, and what they are counted from as CSV beside it.

    Scores are fractions in [0, 1]; ``passes`` is how many pictures of an image CLIP is shown, on average (N');
    ``class_names`` is the spelling of the names (:class:`deop.data.segmentation.DatasetCard`). The CSV
    holds the confusion matrix of each image: columns ``image`` (its place in the validation set), ``truth`` and
    ``predicted`` (class indices) and ``pixels``, of pairs that occur.
    """
    started = time.monotonic()
    settings = Evaluation.model_validate(job.settings["evaluation"])
    dataset = SegmentationDataset(job.inputs["data"], "val").check_labels()
    accelerator = make_accelerator(job.precision)
    segmenter = prepare(load_tested(job), accelerator.device, precision=job.precision, **settings.inference)
    metrics = SegmentationMetrics(
        len(dataset.names),
        dataset.card.unseen,
        ignore=IGNORE,
        convention=settings.miou,
        device=accelerator.device,
    )
    classes, overlaps, passes, confusions = [], [], [], []
    for batch in progress_bar(batches(dataset, settings.batch_size), desc="evaluate"):
        images, labels = load_batch(dataset, batch, accelerator.device)
        with accelerator.autocast():
            prediction, found, shown = predict(segmenter, images, labels, dataset.names, settings.short_side)
        metrics.update(prediction, labels)
        confusions += [
            confusion_pairs(image, truth).cpu() for image, truth in zip(prediction, labels, strict=True)
        ]
        passes.append(shown.cpu())
        if found is not None:
            classes.append(found.classes.cpu())
            overlaps.append(found.iou.cpu())
    scores = metrics.compute()
    confusion = Path(job.output).with_suffix(".csv")
    write_text(confusion, _confusion_csv(confusions))
    write_sealed(
        Path(job.output),
        {
            "metrics": {
                name: _number(value)
                for name, value in (
                    ("pAcc", scores.pacc),
                    ("mIoU", scores.miou),
                    ("hIoU", scores.hiou),
                    ("seen", scores.seen),
                    ("unseen", scores.unseen),
                    ("mIoU_truth", scores.miou_truth),
                )
            },
            "passes": torch.cat(passes).double().mean().item(),
            "per_class_iou": {
                name: _number(iou) for name, iou in zip(dataset.names, scores.iou, strict=True)
            },
            "class_names": dataset.card.spelling,
            "method": read_config(job.inputs["system"]).sections["method"] | job.settings.get("tested", {}),
            "unseen": [dataset.names[label] for label in dataset.card.unseen],
            "proposals": proposal_scores(torch.cat(classes), torch.cat(overlaps), dataset.card.unseen)
            if classes
            else None,
            "images": len(dataset),
            "provenance": describe(job, wall_time_s=round(time.monotonic() - started, 2)),
        },
        beside=(confusion,),
    )


def load_tested(job: Job) -> Segmenter:
    """The system that an evaluation tests.

    On a dataset that it was not trained on, no class counts as seen, as in the releases of the multi-pass systems, and
    the settings of its method may be others (``job.settings["tested"]``).
    """
    seen = () if "transfer" in job.settings else None
    return load_system(job.inputs["system"], changes=job.settings.get("tested"), seen_names=seen)


def batches(dataset: SegmentationDataset, batch_size: int) -> list[range]:
    """The images of a dataset in order: those of one size that follow each other, at most ``batch_size`` at a time."""
    if batch_size == 1:
        return [range(index, index + 1) for index in range(len(dataset))]
    found: list[range] = []
    sizes = [dataset.size(index) for index in range(len(dataset))]
    for index, size in enumerate(sizes):
        if found and len(found[-1]) < batch_size and size == sizes[found[-1].start]:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


def load_batch(dataset: SegmentationDataset, batch: range, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1] and labels (B, H, W) of images of one size."""
    samples = [dataset[index] for index in batch]
    images = torch.stack([sample.image for sample in samples]).to(device).float() / 255
    return images, torch.stack([sample.label for sample in samples]).to(device)


@torch.inference_mode()
def predict(segmenter: Segmenter, images: Tensor, labels: Tensor, names: list[str], short_side: int):
    """Label map (B, H, W) of images (B, 3, H, W), how well proposals cover its segments (None without), and the
    passes."""
    output = segmenter(resize_short_side(images, short_side), names)
    prediction = segmenter.label_map(output, tuple(labels.shape[-2:]))
    found = None
    if not isinstance(output, PixelOutput):
        found = mean_best_iou(output.mask_logits.sigmoid(), labels, ignore=IGNORE)
    return prediction, found, output.passes


def proposal_scores(classes: Tensor, iou: Tensor, unseen: list[int]) -> dict[str, float | None]:
    """Mean best IoU of proposals over the ground-truth segments of seen and of unseen classes."""
    is_unseen = torch.isin(classes, torch.tensor(unseen))
    return {
        name: iou[chosen].mean().item() if chosen.any() else None
        for name, chosen in (("seen", ~is_unseen), ("unseen", is_unseen))
    }


def confusion_pairs(prediction: Tensor, label: Tensor) -> Tensor:
    """(P, 3) of a label map (H, W) and its truth: true class, predicted class, pixels, of the P pairs that occur."""
    labelled = label != IGNORE
    pairs, pixels = torch.stack([label, prediction])[:, labelled].unique(dim=1, return_counts=True)
    return torch.cat([pairs, pixels[None]]).T


def _confusion_csv(confusions: list[Tensor]) -> str:
    frame = pd.concat(
        [
            pd.DataFrame(pairs.numpy(), columns=["truth", "predicted", "pixels"]).assign(image=index)
            for index, pairs in enumerate(confusions)
        ]
    )
    return frame[["image", "truth", "predicted", "pixels"]].to_csv(index=False, lineterminator="\n")


def _number(value: float) -> float | None:
    """None for a mean over nothing: JSON has no NaN."""
    return None if math.isnan(value) else value
