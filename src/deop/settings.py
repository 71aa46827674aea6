"""What each pipeline stage may be told: one strict model a stage, shared by planner, stages and command line.

A stage is a function of its settings and of the artifacts of earlier stages. The settings of an artifact name
those artifacts by their keys, so that one hash identifies everything that went into it (see :mod:`deop.plan`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deop.precision import Precision
from deop.templates import Templates

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Clip(Settings):
    """Which CLIP, from where, and how its input is normalised.

    ``quick_gelu`` says which activation the weights of a file were trained with, where that cannot be found out (see
    :func:`deop.clip_build.uses_quick_gelu`).
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


class Augmentation(Settings):
    """Training augmentation: short side drawn from ``scale`` times ``crop``, random crop, flip, colour jitter.

    ``flip`` and ``colour_jitter`` are the shares of images that are flipped and jittered.
    """

    crop: Positive
    scale: tuple[float, float] = (0.5, 1.5)
    flip: Fraction = 0.5
    colour_jitter: Fraction = 1.0


class ClassTerm(Settings):
    """A classification loss beside the mask losses, with which the release trains its proposals.

    Only training has its class head: a network of hidden widths ``head_hidden`` that takes query states to CLIP's joint
    space, where they are compared with the names of the seen classes in the learned text prompt. ``weight`` is that of
    the cross-entropy, ``no_object_weight`` that of queries without a segment in it.
    """

    weight: Annotated[float, Field(gt=0)] = 1.0
    no_object_weight: Annotated[float, Field(gt=0)] = 0.1
    head_hidden: tuple[Positive, ...] = (1024,)


class Proposals(Settings):
    """The class-agnostic MaskFormer and its schedule (section 3.1).

    ``pretrained_backbone`` true loads timm's weights (the paper's are ImageNet's), ``"bundled"`` those of this package,
    or what ``pretrain_backbone`` trains in their place; another text is the path of a file of timm's weights.
    ``backbone_args`` go to timm, but for ``multi_grid``: the dilations of the blocks of a ResNet's last stage
    (MaskFormer's ResNet-101c: 1, 2, 4). ``frozen_batch_norm`` keeps the backbone's statistics and scales as they were
    pre-trained, as detectron2 does, whatever the size of a batch. ``decoder_norm`` ``outputs`` is MaskFormer's own
    decoder, ``chained`` that of transformers (see :class:`deop.proposals.ProposalNetwork`). ``dropout`` is that of the
    decoder. ``ignored``: pixels of unseen classes are ``excluded`` from the mask losses and the matching, or
    ``background`` to every mask, as in the release. Norms and embeddings have no weight decay; ``decay_biases`` gives
    it to biases, as MaskFormer's code does.
    """

    backbone: str
    backbone_args: dict = {}
    pretrained_backbone: bool | str
    # Like decoder_norm and, below, resampling, this names results only where it is not the default.
    frozen_batch_norm: bool = Field(False, exclude_if=lambda value: not value)
    out_indices: tuple[int, ...] = (1, 2, 3, 4)
    queries: Positive = 100
    decoder_layers: Positive = 6
    width: Positive = 256
    ffn_width: Positive = 2048
    heads: Positive = 8
    dropout: Fraction = 0.0
    decoder_norm: Literal["chained", "outputs"] = Field(
        "chained", exclude_if=lambda value: value == "chained"
    )
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    ignored: Literal["excluded", "background"] = "excluded"
    class_term: ClassTerm | None = None
    iterations: Annotated[int, Field(ge=0)]
    batch_size: Positive = 32
    lr: float = 1e-4
    backbone_lr_factor: float = 0.1
    weight_decay: float = 1e-4
    decay_biases: bool = False
    clip_grad_norm: float = 0.01
    warmup: int = 0
    augmentation: Augmentation

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of :class:`deop.proposals.ProposalNetwork`, but for the backbone's weights."""
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


class SeveranceSettings(Settings):
    """Patch severance (section 4.1). ``alpha`` maps a layer, counted from the end (-1 is the last), to its alpha.

    The kinds that are guided by masks, ``mps`` and ``mask_sum``, sever a layer whole (1) or not at all (0). ``rows``
    says how the rows of ``mps`` are made to sum to one: divided by their sums (``share``), or by a softmax as in the
    release.
    """

    kind: Literal["none", "gps", "mps", "mask_sum"] = "none"
    alpha: dict[int, Fraction] = {}
    rows: Literal["share", "softmax"] = "share"

    @model_validator(mode="after")
    def _whole_layers(self) -> SeveranceSettings:
        between = {layer: alpha for layer, alpha in self.alpha.items() if alpha not in (0, 1)}
        if self.kind in ("mps", "mask_sum") and between:
            raise ValueError(f"severance kind {self.kind!r} has only alphas 0 and 1 (got {between})")
        return self


class AnchorSettings(Settings):
    """Classification anchor learning (section 4.2); ``kind: none`` is mask pooling.

    ``layers`` is K of both decoders. ``conv`` is Eq. 4 with its softmax over the patches of each mask, ``conv_image``
    over all patches of the image (see :class:`deop.anchors.ConvHeatmapDecoder`); ``heads``, ``ffn_width`` and
    ``dropout`` are the query decoder's alone.
    """

    kind: Literal["none", "query", "conv", "conv_image"] = "none"
    layers: Annotated[int, Field(ge=0)] = 1
    heads: Positive = 8
    ffn_width: Positive = 1024
    dropout: Fraction = 0.1
    feature_scale: float = 1.0


class Network(Settings):
    """One system of the tables: which of DeOP's parts are on.

    ``text_prompts`` are learned ``offline``, go on learning end to end (``online``), or are not learned at all but the
    mean over ``templates``, CLIP's zero-shot recipe: the name of a set (:data:`deop.templates.SETS`) or a list.
    ``logit_scale`` multiplies the cosines that the softmax over classes sees; None is the CLIP's own, learned in its
    pre-training: 100 for OpenAI's. ``resampling: release`` follows the authors' release, for its weights: positions and
    visual prompts are resized without antialiasing, and the masks that pool are brought to the patch grid after their
    sigmoid and not before.
    """

    method: Literal["deop"] = "deop"
    visual_prompts: bool = False
    text_prompts: Literal["offline", "online", "templates"] = "offline"
    templates: Templates = ()
    severance: SeveranceSettings = SeveranceSettings()
    anchors: AnchorSettings = AnchorSettings()
    visual_prompt_grid: Positive = 24
    renormalise_pooled: bool = False
    logit_scale: float | None = None
    # Left out of what names results unless it is set, so that those from before it keep their names.
    resampling: Literal["antialias", "release"] = Field(
        "antialias", exclude_if=lambda value: value == "antialias"
    )

    @model_validator(mode="after")
    def _templates_or_learned(self) -> Network:
        if bool(self.templates) != (self.text_prompts == "templates"):
            raise ValueError("text_prompts is 'templates' if, and only if, templates are given")
        return self

    @property
    def trained(self) -> bool:
        """Whether the network has anything to learn end to end (the baseline has not)."""
        return self.visual_prompts or self.text_prompts == "online" or self.anchors.kind != "none"


_IN_TRAINING = (
    "head_hidden",
    "unit_no_object",
    "proposal_templates",
    "logit_scale",
    "class_weight",
    "no_object_weight",
)


class MultiPassSettings(Settings):
    """What the multi-pass systems have in common; the defaults are those of both releases, but for ``crop_resampling``.

    head_hidden: hidden widths of the class head, which takes query states to CLIP's joint space.
    unit_no_object: the learned row "no object" has unit length, like the rows of names.
    proposal_templates, crop_templates: prompts of the two streams, of which the mean embedding is taken: the name of a
        set (:data:`deop.templates.SETS`), or a list with ``{}`` for the class name; none for the learned text prompt.
    logit_scale: factor of the cosines of both streams; None is the CLIP's own (100 for OpenAI's).
    class_weight: weight of the classification, in the loss and in the matching cost.
    no_object_weight: weight of the queries without a segment in the cross-entropy.
    mask_threshold: a proposal is shown to CLIP if its mask exceeds this somewhere, and what exceeds it is shown.
    crop_expand: side lengths of a crop over those of its mask's box.
    crop_resampling: how crops are resized: bicubic with antialiasing, or as in the system's own release. SimBaseline's
        is bicubic without antialiasing, not clamped to [0, 1]; ZegFormer's is RoIAlign on a box without the mask's
        last row and column, or on the whole image where such a box has no area.
    crop_size: side of the resized crops in pixels; None is the size that CLIP was pre-trained at.
    crop_batch: crops in one call of CLIP.
    without_crop: what stands for CLIP's probability of each class where a proposal is not shown to it.
    """

    head_hidden: tuple[Positive, ...] = ()
    unit_no_object: bool = True
    proposal_templates: Templates = ()
    crop_templates: Templates = ()
    logit_scale: float | None = None
    class_weight: Annotated[float, Field(ge=0)] = 1.0
    no_object_weight: Annotated[float, Field(gt=0)] = 0.1
    mask_threshold: Fraction = 0.5
    crop_expand: Annotated[float, Field(gt=0)] = 1.0
    crop_resampling: Literal["antialias", "release"] = "antialias"
    crop_size: Positive | None = None
    crop_batch: Positive = 128
    without_crop: Literal["one", "uniform", "zero"] = "one"

    @property
    def learned_prompts(self) -> bool:
        """Whether a stream asks for the learned text prompt."""
        return not (self.proposal_templates and self.crop_templates)

    def for_training(self) -> dict[str, Any]:
        """What training depends on; how crops are made and the streams put together is no reason to train again.

        Crops play no part in it, so their stream is given the prompts of the other.
        """
        values = self.model_dump(mode="json", include={"method", *_IN_TRAINING})
        return values | {"crop_templates": values["proposal_templates"]}


class SimBaselineSettings(MultiPassSettings):
    """The release's settings for COCO-Stuff, but for ``crop_resampling``.

    For VOC it has ``ensemble_weight`` 0.7 and the proposal stream's prompt "a sculpture of a {}.". On a dataset that
    it was not trained on, no class counts as seen (give no ``seen_names``); ``ensemble_weight`` and ``mask_threshold``
    are then 0.4 and 0.5 (VOC-20, PC-59), 0.5 and 0.4 (A-150), 0.7 and 0.3 (A-847).

    ensemble_weight: weight toward the proposal stream for seen classes, and toward CLIP for the others.
    """

    method: Literal["simbaseline"] = "simbaseline"
    head_hidden: tuple[Positive, ...] = (1024,)
    ensemble_weight: Fraction = 0.8


class ZegFormerSettings(MultiPassSettings):
    """The release's settings for COCO-Stuff and VOC, but for ``crop_resampling`` and two more.

    It averages over eight templates in training on COCO-Stuff and over 32 for the crops; here it is one for each, and
    more are a matter of configuration. And it sends all N proposals through CLIP, an empty one as a plain picture;
    here those are left out, as the DeOP paper counts its passes, and CLIP is taken to be undecided on them.

    ensemble_weight: weight toward the proposal stream for seen classes, and toward CLIP for the others.
    calibration: what is subtracted from every pixel's score of each seen class.
    """

    method: Literal["zegformer"] = "zegformer"
    unit_no_object: bool = False
    proposal_templates: Templates = ("A photo of a {} in the scene",)
    crop_templates: Templates = ("A photo of a {} in the scene",)
    without_crop: Literal["one", "uniform", "zero"] = "uniform"
    ensemble_weight: Fraction = 2 / 3
    calibration: float = 0.1


SYSTEMS: dict[str, type[Settings]] = {
    "deop": Network,
    "simbaseline": SimBaselineSettings,
    "zegformer": ZegFormerSettings,
}
"""The settings of a system by its ``method``."""


class Segmentation(Settings):
    """End-to-end training of a network with CLIP and proposals frozen (sections 3.2 and 4).

    ``loss`` says what pixels without a seen class are to the loss: left out (``labelled``), or "no object" in its focal
    part as in the release (see :mod:`deop.losses`). ``anchors_lr_factor`` is the anchor decoder's learning rate over
    ``lr``: it starts from nothing, prompts from CLIP. ``decay_biases`` is as in :class:`Proposals`.
    """

    loss: Literal["labelled", "release"] = "labelled"
    focal_weight: float = 2.0
    focal_alpha: Fraction = 0.25
    focal_gamma: float = 2.0
    dice_weight: float = 0.8
    iterations: Annotated[int, Field(ge=0)]
    batch_size: Positive = 32
    lr: float = 2e-4
    anchors_lr_factor: float = 1.0
    weight_decay: float = 1e-4
    decay_biases: bool = False
    clip_grad_norm: float = 0.01
    warmup: int = 0
    augmentation: Augmentation


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
    compiled: bool = Field(False, exclude_if=lambda value: not value)

    @property
    def inference(self) -> dict[str, Any]:
        """The arguments of :func:`deop.inference.prepare`."""
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
    """Which picture: ``scene``, a validation scene from image to result, or ``anchors``, the paper's figure 5."""

    kind: Literal["scene", "anchors"]


class Job(Settings):
    """One unit of work: a stage, its settings, where its inputs lie and where its output goes.

    ``key`` is the hash of everything that determines the output; ``inputs`` maps a role (``data``, ``clip``,
    ``prompts``, ``proposals``, ``segmentation``) to the path of that artifact; ``settings`` maps a section name
    (``clip``, ``network``, ...) to values that the stage validates with the model of that name above; ``precision`` is
    what a stage that runs networks through Accelerate computes in.
    """

    stage: str
    key: str
    seed: int = 0
    output: str
    inputs: dict[str, str] = {}
    settings: dict[str, dict] = {}
    precision: Precision = "fp32"
