"""Focal and dice losses of masks, and the end-to-end segmentation loss (section 3.2).

The paper only says of the latter that it combines dice and focal loss. There are two versions, chosen by
``segmentation.loss``. :func:`segmentation_loss`, the default, leaves out pixels without a seen class.
:func:`release_segmentation_loss` is that of the authors' release. Its focal part has "no object" as one more class,
whose positive examples are these pixels. Pixels of unseen classes are among them, so it trains the network to predict
"no object" for unseen classes; hence it is not the default.

All losses need float32, whatever the autocast precision: half precision holds neither sums over a whole mask nor the
small values of the focal factor. The segmentation losses convert their inputs; callers of the other losses have to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision.ops import sigmoid_focal_loss


def mask_losses(
    logits: Tensor, targets: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Sigmoid focal loss and dice loss of each mask over its valid pixels.

    Args:
        logits: (M, P) mask logits, M masks of P pixels.
        targets: (M, P) target masks, 0 or 1, and 0 wherever ``valid`` is.
        valid: (M, P), 1 where the pixel counts, 0 where it takes no part.

    Returns:
        (M,) focal losses, each the mean over pixels, 0 for a mask without a valid one; (M,) dice losses.
    """
    focal, intersection, prediction = _MaskSums.apply(logits, targets, valid, alpha, gamma)
    return focal / valid.sum(-1).clamp(min=1), dice(intersection, prediction, targets.sum(-1))


@torch.no_grad()
def pairwise_mask_losses(
    logits: Tensor, targets: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """:func:`mask_losses` of every mask of an image with each of its target masks, for matching: without gradients.

    Args:
        logits: (B, N, P) mask logits.
        targets: (B, K, P) target masks, 0 or 1, and 0 wherever ``valid`` is.
        valid: (B, P), 1 where the pixel counts, 0 where it takes no part.

    Returns:
        (B, N, K) focal losses; (B, N, K) dice losses.
    """
    # In place, because the matrices of all pairs are a large part of a small network's matching.
    score, softplus = logits.sigmoid(), F.softplus(logits)
    negative = score.pow(gamma).mul_(softplus).mul_(1 - alpha)
    positive = (1 - score).pow_(gamma).mul_(softplus.sub_(logits)).mul_(alpha)
    columns, everywhere = targets.transpose(1, 2), valid[:, None]
    vecdot, pixels = torch.linalg.vecdot, valid.sum(-1).clamp(min=1)
    # As if all pixels were outside the target; then those inside it are corrected.
    focal = vecdot(negative, everywhere)[..., None] + torch.bmm(positive.sub_(negative), columns)
    prediction, area = vecdot(score, everywhere)[..., None], targets.sum(-1)[:, None]
    return focal / pixels[:, None, None], dice(torch.bmm(score, columns), prediction, area)


class _MaskSums(torch.autograd.Function):
    """Sums (M,) over the pixels of masks: focal loss, prediction times target, prediction.

    All three are computed from the score of the wrong side of each pixel: of 1 - t for a target t. Autograd on the
    plain formula (or torchvision's loss) goes over the masks four times as often, and memory traffic dominates a small
    network's step.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, targets: Tensor, valid: Tensor, alpha: float, gamma: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        right = (2 * targets).sub_(1).mul_(logits).sigmoid_()
        score = 1 - right
        # Half the cost of F.softplus. Beyond logits of 87 the loss stays constant, but its slope below is still right.
        logarithm = right.clamp_(min=torch.finfo(right.dtype).tiny).log()
        power, vecdot = score.pow(gamma), torch.linalg.vecdot
        missed = vecdot(score, targets)
        intersection = targets.sum(-1) - missed
        prediction = intersection + vecdot(score, valid) - missed
        if ctx.needs_input_grad[0]:
            slope = torch.addcmul(score, right, logarithm, value=-gamma).mul_(power)  # of -power * logarithm
            ctx.save_for_backward(slope, score.mul_(right), targets, valid)
            ctx.alpha = alpha
        loss = logarithm.mul_(power)
        focal = (alpha - 1) * vecdot(loss, valid) + (1 - 2 * alpha) * vecdot(loss, targets)
        return focal, intersection, prediction

    @staticmethod
    @once_differentiable
    def backward(
        ctx, focal: Tensor, intersection: Tensor, prediction: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        slope, spread, targets, valid = ctx.saved_tensors
        focal, intersection, prediction = focal[:, None], intersection[:, None], prediction[:, None]
        # Weight times sign of the focal loss: -alpha inside the target, 1 - alpha outside it.
        of_focal = torch.mul(valid, (1 - ctx.alpha) * focal).addcmul_(targets, focal, value=-1).mul_(slope)
        of_sums = torch.mul(valid, prediction).addcmul_(targets, intersection)
        return of_focal.addcmul_(of_sums, spread), None, None, None, None


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (M, h, w) resized bilinearly to ``size``: (M, H, W), as ``F.interpolate`` with ``align_corners=False``.

    Computed as products with the weights of rows and of columns, whose gradient is several times as fast.
    """
    rows, columns = (
        F.interpolate(torch.eye(old, device=maps.device)[None], new, mode="linear", align_corners=False)[0]
        for old, new in zip(maps.shape[-2:], size)
    )
    return rows.T @ maps @ columns


def dice(intersection: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """Dice loss from sums over pixels, smoothed by one pixel: ``1 - (2 i + 1) / (p + t + 1)``.

    Args:
        intersection: any shape, sum over pixels of prediction times target.
        prediction: sum of the prediction, broadcastable against ``intersection``.
        target: sum of the target, likewise.
    """
    return 1 - (2 * intersection + 1) / (prediction + target + 1)


def labels_at(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels sampled at another resolution (the nearest pixel to each new pixel's centre).

    Args:
        labels: (B, H, W) class indices.
        size: the new (h, w) in pixels.

    Returns:
        (B, h, w) of the same type.
    """
    if labels.shape[-2:] == torch.Size(size):
        return labels
    rows, columns = (
        ((torch.arange(new, device=labels.device) + 0.5) * (old / new)).long()
        for new, old in zip(size, labels.shape[-2:])
    )
    return labels[:, rows[:, None], columns]


def segmentation_loss(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    *,
    ignore: int = 255,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    focal_weight: float = 2.0,
    dice_weight: float = 0.8,
) -> dict[str, Tensor]:
    """Focal and dice loss of the per-pixel class scores against the one-hot seen classes.

    ``p_c = sum_n softmax(class_logits_n)_c * sigmoid(mask_n)`` for the C classes ("no object" takes its share
    of the softmax and is then dropped), score ``sigmoid(3 p - 3)``. Focal is the mean over labelled pixels
    and classes; dice takes all pixels and classes of one image together and is the mean over the images that
    have a labelled pixel.

    The loss is taken at the resolution of ``labels``; masks of another size are brought there bilinearly (as
    logits). Give labels sampled with :func:`labels_at` for a cheaper loss on a coarser grid.

    Args:
        class_logits: (B, N, C+1), the last column "no object".
        mask_logits: (B, N, h, w) of the N proposals.
        labels: (B, H, W) class indices in [0, C), or ``ignore`` for pixels that take no part.

    Returns:
        ``focal`` and ``dice``, scalars, already weighted: the loss to minimise is their sum.

    Raises:
        ValueError: a label is neither a class nor ``ignore``.
    """
    classes = class_logits.shape[-1] - 1
    valid = _labelled(labels, classes, ignore)
    with torch.autocast(labels.device.type, enabled=False):
        mask_logits = mask_logits.float()
        if mask_logits.shape[-2:] != labels.shape[-2:]:
            mask_logits = F.interpolate(mask_logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        masks = mask_logits.sigmoid().flatten(2) * valid.flatten(1)[:, None]
        probabilities = class_logits.float().softmax(-1)[..., :-1]
        logits = 3 * torch.bmm(probabilities.transpose(1, 2), masks) - 3  # (B, C, pixels)

        index = labels.masked_fill(~valid, 0).flatten(1)[:, None]
        weight = valid.flatten(1).float()
        score = logits.sigmoid()
        # Every element counts as negative, then the true class of each pixel is corrected. For the first, torchvision's
        # loss saves twice the memory for the backward pass and makes twice as many passes over the scores.
        negative = (1 - focal_alpha) * score.pow(focal_gamma) * F.softplus(logits)
        of_truth = logits.gather(1, index).squeeze(1)
        right, wrong = (
            sigmoid_focal_loss(of_truth, target, focal_alpha, focal_gamma)
            for target in (torch.ones_like(of_truth), torch.zeros_like(of_truth))
        )
        focal = ((negative.sum(1) - wrong + right) * weight).sum()
        focal = focal / (weight.sum() * classes).clamp(min=1)

        labelled = weight.sum(1)
        per_image = dice(
            (score.gather(1, index).squeeze(1) * weight).sum(1), (score.sum(1) * weight).sum(1), labelled
        )
        has_labels = (labelled > 0).float()
        mean_dice = (per_image * has_labels).sum() / has_labels.sum().clamp(min=1)
    return {"focal": focal_weight * focal, "dice": dice_weight * mean_dice}


def release_segmentation_loss(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    *,
    ignore: int = 255,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    focal_weight: float = 2.0,
    dice_weight: float = 0.8,
) -> dict[str, Tensor]:
    """The end-to-end loss as the authors' release has it (``criterion_decoder.py`` in CongHan0808/DeOP).

    ``p_c = sum_n softmax(class_logits_n)_c * sigmoid(mask_n)`` for all C+1 columns, score ``sigmoid(3 p - 3)``, as in
    :func:`segmentation_loss`. Focal is the mean over all pixels and columns, where the target of ignored pixels is
    "no object"; its logarithm is of a probability clamped to [1e-4, 1 - 1e-4], beyond which it has no gradient.
    Dice takes all pixels and the C classes of one image together, scores at ignored pixels too, which are nobody's
    target, and is the mean over all images.

    Give labels at the resolution of the image: the release does not sample them. Arguments, returns and errors are
    those of :func:`segmentation_loss`.
    """
    classes = class_logits.shape[-1] - 1
    valid = _labelled(labels, classes, ignore).flatten(1)
    with torch.autocast(labels.device.type, enabled=False):
        masks = F.interpolate(
            mask_logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False
        ).sigmoid()
        probabilities = class_logits.float().softmax(-1)
        summed = torch.bmm(probabilities.transpose(1, 2), masks.flatten(2))  # (B, C + 1, pixels)
        score = (3 * summed - 3).sigmoid()

        target = labels.flatten(1).masked_fill(~valid, classes)[:, None]
        # Every element counts as negative, then the target of each pixel is put right.
        of_target = score.gather(1, target)
        negative = (1 - focal_alpha) * score.pow(focal_gamma) * -_clamped_log(1 - score)
        wrong = (1 - focal_alpha) * of_target.pow(focal_gamma) * -_clamped_log(1 - of_target)
        right = focal_alpha * (1 - of_target).pow(focal_gamma) * -_clamped_log(of_target)
        focal = (negative.sum() - wrong.sum() + right.sum()) / score.numel()

        overlap = (of_target[:, 0] * valid).sum(1)
        of_images = dice(overlap, score[:, :classes].sum((1, 2)), valid.float().sum(1))
    return {"focal": focal_weight * focal, "dice": dice_weight * of_images.mean()}


SEGMENTATION_LOSSES = {"labelled": segmentation_loss, "release": release_segmentation_loss}
"""The end-to-end loss by its name in ``segmentation.loss``."""


def _clamped_log(probability: Tensor) -> Tensor:
    return probability.clamp(1e-4, 1 - 1e-4).log()


def _labelled(labels: Tensor, classes: int, ignore: int) -> Tensor:
    """Where labels are not ``ignore``, which has to be where they are classes."""
    valid = labels != ignore
    strays = labels[valid & ((labels < 0) | (labels >= classes))]
    if strays.numel():
        stray = strays[0].item()
        raise ValueError(f"label {stray} is neither a class (0 to {classes - 1}) nor ignore ({ignore})")
    return valid
