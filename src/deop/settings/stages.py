"""What each pipeline stage may be told: one strict model a stage, shared by planner, stages and command line.

A stage is a function of its settings and of the artifacts of earlier stages. The settings of an artifact name
those artifacts by their keys, so that one hash identifies everything that went into it (see :mod:`deop.jobs.plan`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from deop.settings.base import Fraction, Positive, Settings
from deop.settings.schedule import Schedule


class Clip(Settings):
    """Which CLIP, from where, and how its input is normalised.

    ``quick_gelu`` says which activation the weights of a file were trained with, where that cannot be found out (see
    :func:`deop.models.clip_build.uses_quick_gelu`).
    """

    model: str
    pretrained: str | None = "bundled"
    quick_gelu: bool | None = None
    normalisation: Literal["clip", "imagenet"] = "clip"


class TextPrompts(Settings):
    """Offline text prompt learning (section 3.2; SimBaseline's recipe).

    The learned prefix has ``prefix_tokens`` tokens that start from random values (standard deviation ``init_std``) and
    then those of ``prefix_words``, which start from what they mean. ``logit_scale`` None is the CLIP's own, learned in
    its pre-training: 100 for OpenAI's. ``crop_fill`` is what surrounds a segment: ``mean``, CLIP's mean colour, filled
    in before the crop is resized; ``release``, as in the code of SimBaseline and DeOP, the same numbers filled in after
    the crop is resized and normalised, which is a lighter grey.
    """

    prefix_tokens: Annotated[int, Field(ge=0)] = 16
    prefix_words: str = ""
    init_std: float = 0.02
    logit_scale: float | None = None
    iterations: Annotated[int, Field(ge=0)]
    batch_size: Positive = 32
    lr: float = 0.02
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup: int = 100
    samples_per_class: Positive = 32
    crop_size: Positive = 224
    crop_fill: Literal["mean", "release"] = "mean"


class ClassTerm(Settings):
    """A classification loss beside the mask losses, with which the release trains its proposals.

    Only training has its class head: a network of hidden widths ``head_hidden`` that takes query states to CLIP's joint
    space, where they are compared with the names of the seen classes in the learned text prompt. ``weight`` is that of
    the cross-entropy, ``no_object_weight`` that of queries without a segment in it.
    """

    weight: Annotated[float, Field(gt=0)] = 1.0
    no_object_weight: Annotated[float, Field(gt=0)] = 0.1
    head_hidden: tuple[Positive, ...] = (1024,)


class Proposals(Schedule):
    """The class-agnostic MaskFormer and its schedule (section 3.1).

    ``pretrained_backbone`` true loads timm's weights (the paper's are ImageNet's), ``"bundled"`` those of this package,
    or what ``pretrain_backbone`` trains in their place; another text is the path of a file of timm's weights.
    ``backbone_args`` go to timm, but for ``multi_grid``: the dilations of the blocks of a ResNet's last stage
    (MaskFormer's ResNet-101c: 1, 2, 4). ``frozen_batch_norm`` keeps the backbone's statistics and scales as they were
    pre-trained, as detectron2 does, whatever the size of a batch. ``decoder_norm`` ``outputs`` is MaskFormer's own
    decoder, ``chained`` that of transformers (see :class:`deop.models.proposals.ProposalNetwork`). ``dropout`` is that
    of the decoder. ``ignored``: pixels of unseen classes are ``excluded`` from the mask losses and the matching, or
    ``background`` to every mask, as in the release. Norms and embeddings have no weight decay; ``decay_biases`` gives
    it to biases, as MaskFormer's code does.
    """

    backbone: str
    backbone_args: Annotated[dict, Field(default_factory=dict)]
    pretrained_backbone: bool | str
    frozen_batch_norm: bool = False
    out_indices: tuple[int, ...] = (1, 2, 3, 4)
    queries: Positive = 100
    decoder_layers: Positive = 6
    width: Positive = 256
    ffn_width: Positive = 2048
    heads: Positive = 8
    dropout: Fraction = 0.0
    decoder_norm: Literal["chained", "outputs"] = "chained"
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    ignored: Literal["excluded", "background"] = "excluded"
    class_term: ClassTerm | None = None
    lr: float = 1e-4
    backbone_lr_factor: float = 0.1

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

    ``loss`` says what pixels without a seen class are to the loss: left out (``labelled``), or "no object" in its focal
    part as in the release (see :mod:`deop.models.losses`). ``anchors_lr_factor`` is the anchor decoder's learning rate
    over ``lr``: it starts from nothing, prompts from CLIP. ``decay_biases`` is as in :class:`Proposals`.
    """

    loss: Literal["labelled", "release"] = "labelled"
    focal_weight: float = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: float = 2.0
    dice_weight: float = 0.8
    anchors_lr_factor: float = 1.0


class Evaluation(Settings):
    """Testing on a validation set: whole images, short side resized to ``short_side`` pixels for CLIP.

    Images are padded to multiples of ``size_divisibility`` pixels (the release: 32), on the right and at the bottom,
    with zeros after normalisation. ``upsample`` says what is resized to the size of the label map: the logits of the
    ``masks``, or as in the release the class ``scores`` of every pixel of the resized image. Pictures of networks at
    work use the defaults of both.

    ``compiled`` has torch.compile make the networks anew: a minute or more that pays where many images are of one size.
    """

    short_side: Positive = 512
    batch_size: Positive = 1
    size_divisibility: Positive = 1
    upsample: Literal["masks", "scores"] = "masks"
    miou: Literal["occurring", "ground_truth"] = "occurring"
    compiled: bool = False

    @property
    def inference(self) -> dict[str, Any]:
        """The arguments of :func:`deop.methods.inference.prepare`."""
        return {
            "compiled": self.compiled,
            "size_divisibility": self.size_divisibility,
            "upsample": self.upsample,
        }


class Speed(Settings):
    """How fast systems are: ``images`` of a validation set one by one, after ``warmup`` that do not count.

    The set is gone through again where it has fewer. ``threads`` are those of the CPU.
    """

    images: Positive = 100
    warmup: Positive = 5
    threads: Positive = 1


class PictureSettings(Settings):
    """Which picture: ``scene``, a validation scene from image to result, or ``anchors``, the paper's figure 5.

    Images are resized so that their shorter side has ``short_side`` pixels.
    """

    kind: Literal["scene", "anchors"]
    short_side: Positive
