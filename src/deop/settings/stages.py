"""The settings of the pipeline's stages: one strict model each, used by planner, stages and command line.

The output of a stage depends on its settings and on the artifacts of earlier stages, and on nothing else. Both are
part of its key (see :mod:`deop.jobs.plan`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from deop.settings.base import AboveZero, Fraction, NotNegative, Positive, Settings, Whole
from deop.settings.precision import Runtime
from deop.settings.schedule import Schedule


class Clip(Settings):
    """The CLIP model, the origin of its weights, and the normalisation of its input.

    ``quick_gelu`` says which activation the weights of a file were trained with, if that cannot be found out from the
    model's name (see :func:`deop.models.clip_build.uses_quick_gelu`).
    """

    model: str
    pretrained: str | None = "bundled"
    quick_gelu: bool | None = None
    normalisation: Literal["clip", "imagenet"] = "clip"


class TextPrompts(Settings):
    """Offline text prompt learning (section 3.2; SimBaseline's recipe).

    The learned prefix has ``prefix_tokens`` tokens that start from random values (standard deviation ``init_std``),
    followed by the tokens of ``prefix_words``, which start from their word embeddings. ``logit_scale`` None is CLIP's
    own, learned in its pre-training (100 for OpenAI's). ``crop_fill`` is the colour around a segment in its crop:
    ``mean`` is CLIP's mean colour, filled in before the crop is resized. ``release`` follows the code of SimBaseline
    and DeOP: the same numbers, filled in after the crop is resized and normalised, which is a lighter grey.
    """

    prefix_tokens: Whole = 16
    prefix_words: str = ""
    init_std: NotNegative = 0.02
    logit_scale: AboveZero | None = None
    iterations: Whole
    batch_size: Positive = 32
    lr: NotNegative = 0.02
    weight_decay: NotNegative = 5e-4
    momentum: NotNegative = 0.9
    warmup: Whole = 100
    samples_per_class: Positive = 32
    crop_size: Positive = 224
    crop_fill: Literal["mean", "release"] = "mean"


class ClassTerm(Settings):
    """A classification loss in addition to the mask losses, with which the release trains its proposals.

    Its class head is used in training only. It is an MLP of hidden widths ``head_hidden`` that maps query states to
    CLIP's joint space, where they are compared with the names of the seen classes in the learned text prompt.
    ``weight`` is the weight of the cross-entropy, and ``no_object_weight`` that of unmatched queries in it.
    """

    weight: AboveZero = 1.0
    no_object_weight: AboveZero = 0.1
    head_hidden: tuple[Positive, ...] = (1024,)


class Proposals(Schedule):
    """The class-agnostic MaskFormer and its schedule (section 3.1).

    pretrained_backbone: true loads timm's weights (the paper uses ImageNet's), ``"bundled"`` those of this package or,
        if ``pretrain_backbone`` is to train them, those. Any other text is the path of a file of timm's weights.
    backbone_args: arguments for timm. ``multi_grid`` is not timm's: the dilations of the blocks of a ResNet's last
        stage (1, 2, 4 for MaskFormer's ResNet-101c).
    frozen_batch_norm: keeps the backbone's statistics and scales as they were pre-trained, as detectron2 does.
    decoder_norm: ``outputs`` is MaskFormer's own decoder, ``chained`` that of transformers (see
        :class:`deop.models.proposals.ProposalNetwork`).
    dropout: of the decoder.
    ignored: whether pixels of unseen classes are ``excluded`` from the mask losses and the matching or, as in the
        release, count as ``background`` of every mask.
    class_term: a classification loss for the proposals, None for class-agnostic training.
    """

    backbone: str
    backbone_args: Annotated[dict, Field(default_factory=dict)]
    pretrained_backbone: bool | str
    frozen_batch_norm: bool = False
    out_indices: Annotated[tuple[Whole, ...], Field(min_length=1)] = (1, 2, 3, 4)
    queries: Positive = 100
    decoder_layers: Positive = 6
    width: Positive = 256
    ffn_width: Positive = 2048
    heads: Positive = 8
    dropout: Fraction = 0.0
    decoder_norm: Literal["chained", "outputs"] = "chained"
    focal_weight: NotNegative = 20.0
    dice_weight: NotNegative = 1.0
    ignored: Literal["excluded", "background"] = "excluded"
    class_term: ClassTerm | None = None
    lr: NotNegative = 1e-4
    backbone_lr_factor: NotNegative = 0.1

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of :class:`deop.models.proposals.ProposalNetwork`, but for the backbone's weights."""
        return {
            "backbone": self.backbone,
            "backbone_args": self.backbone_args,
            "out_indices": self.out_indices,
            "queries": self.queries,
            "decoder_layers": self.decoder_layers,
            "width": self.width,
            "ffn_width": self.ffn_width,
            "heads": self.heads,
            "dropout": self.dropout,
            "decoder_norm": self.decoder_norm,
            "frozen_batch_norm": self.frozen_batch_norm,
            "focal_weight": self.focal_weight,
            "dice_weight": self.dice_weight,
            "ignored": self.ignored,
        }


class Segmentation(Schedule):
    """End-to-end training of a network with CLIP and proposals frozen (sections 3.2 and 4).

    ``loss`` says how pixels without a seen class are treated: ignored (``labelled``), or as "no object" in the focal
    loss, as in the release (see :mod:`deop.models.losses`). ``anchors_lr_factor`` is the learning rate of the anchor
    decoder relative to ``lr``: it starts from random weights, whereas prompts start from CLIP.
    """

    loss: Literal["labelled", "release"] = "labelled"
    focal_weight: NotNegative = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: NotNegative = 2.0
    dice_weight: NotNegative = 0.8
    anchors_lr_factor: NotNegative = 1.0


class Inference(Settings):
    """How a system is given images, and what of its output is resized.

    Images are whole, and their shorter side is resized to ``short_side`` pixels for CLIP. They are padded to multiples
    of ``size_divisibility`` pixels (32 in the release), on the right and at the bottom, with zeros after normalisation.
    ``upsample`` says what is resized to the size of the label map: the logits of the ``masks`` or, as in the release,
    the class ``scores`` of every pixel of the resized image.
    """

    short_side: Positive = 512
    size_divisibility: Positive = 1
    upsample: Literal["masks", "scores"] = "masks"


class Evaluation(Inference):
    """Evaluation on a validation set.

    ``batch_size`` is the number of images of one size that are computed at once. ``miou`` says which classes mIoU
    averages over: those that occur in the ground truth or the prediction, or in the ground truth alone.

    ``runtime`` is what computes the networks. ``compiled`` is torch.compile; ``openvino`` and ``onnxruntime`` compute
    on the CPU, and need the package's extras ``openvino`` and ``onnx``. All three take up to a minute to start, and pay
    off if many images have the same size.
    """

    batch_size: Positive = 1
    miou: Literal["occurring", "ground_truth"] = "occurring"
    runtime: Runtime = "torch"

    @property
    def inference(self) -> dict[str, Any]:
        """The arguments of :func:`deop.methods.inference.prepare`."""
        return {
            "runtime": self.runtime,
            "size_divisibility": self.size_divisibility,
            "upsample": self.upsample,
        }


class Speed(Settings):
    """Measuring the speed of systems: ``images`` of a validation set one by one, after ``warmup`` that do not count.

    A smaller set is repeated. ``threads`` is the number of CPU threads.
    """

    images: Positive = 100
    warmup: Positive = 5
    threads: Positive = 1


class PictureSettings(Settings):
    """The kind of picture: ``scene``, a validation scene from image to result, or ``anchors``, the paper's figure 5.

    Images are resized so that their shorter side has ``short_side`` pixels.
    """

    kind: Literal["scene", "anchors"]
    short_side: Positive
