"""What each method may be told, and the registry of methods.

A method is a module of :mod:`deop.methods`, called by its file name (``deop``, ``simbaseline``), or any other
importable module, called by its dotted name (``my_lab.dense_clip``). It defines a subclass of
:class:`deop.methods.base.Segmenter`, decorated with :func:`method`. The settings of the built-in methods are here and
not in their modules, so that the workflow is planned without importing torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from deop.errors import ConfigError, unknown
from deop.settings.base import AboveZero, Fraction, NotNegative, Positive, Settings, Whole
from deop.settings.clip_layers import check_severed_layers
from deop.settings.files import merged
from deop.settings.method_base import MethodSettings, Part
from deop.settings.per_pixel import (
    CaGNetSettings,
    LSegSettings,
    OpenSegSettings,
    SPNetSettings,
    ZS3NetSettings,
)
from deop.settings.templates import Templates, describe_templates

Class = TypeVar("Class", bound=type)

_LEARNED = {"offline": "learned offline", "online": "learned offline and then end to end"}


class SeveranceSettings(Settings):
    """Patch severance (section 4.1). ``alpha`` maps a layer, counted from the end (-1 is the last), to its alpha.

    The kinds that are guided by masks, ``mps`` and ``mask_sum``, sever a layer whole (1) or not at all (0). ``rows``
    says how the rows of ``mps`` are made to sum to one: divided by their sums (``share``), or by a softmax as in the
    release.
    """

    kind: Literal["none", "gps", "mps", "mask_sum"] = "none"
    alpha: dict[int, Fraction] = Field(default_factory=dict)
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
    over all patches of the image (see :class:`deop.models.anchors.ConvHeatmapDecoder`); ``heads``, ``ffn_width`` and
    ``dropout`` are the query decoder's alone.
    """

    kind: Literal["none", "query", "conv", "conv_image"] = "none"
    layers: Whole = 1
    heads: Positive = 8
    ffn_width: Positive = 1024
    dropout: Fraction = 0.1
    feature_scale: float = 1.0


class DeOPSettings(MethodSettings):
    """One system of the tables: which of DeOP's parts are on.

    ``text_prompts`` are learned ``offline``, go on learning end to end (``online``), or are not learned at all but the
    mean over ``templates``, CLIP's zero-shot recipe: the name of a set (:data:`deop.settings.templates.SETS`) or a
    list. ``logit_scale`` multiplies the cosines that the softmax over classes sees; None is the CLIP's own, learned in
    its pre-training: 100 for OpenAI's. ``resampling: release`` follows the authors' release, for its weights: positions
    and visual prompts are resized without antialiasing, and the masks that pool are brought to the patch grid after
    their sigmoid and not before.
    """

    method: Literal["deop"] = "deop"
    visual_prompts: bool = False
    text_prompts: Literal["offline", "online", "templates"] = "offline"
    templates: Templates = ()
    severance: SeveranceSettings = SeveranceSettings()
    anchors: AnchorSettings = AnchorSettings()
    visual_prompt_grid: Positive = 24
    renormalise_pooled: bool = False
    logit_scale: AboveZero | None = None
    resampling: Literal["antialias", "release"] = "antialias"

    @model_validator(mode="after")
    def _templates_or_learned(self) -> DeOPSettings:
        if bool(self.templates) != (self.text_prompts == "templates"):
            raise ValueError("text_prompts is 'templates' if, and only if, templates are given")
        return self

    @property
    def trained(self) -> bool:
        """Whether the network has anything to learn end to end (the baseline has not)."""
        return self.visual_prompts or self.text_prompts == "online" or self.anchors.kind != "none"

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("clip", "proposals") if self.templates else ("clip", "prompts", "proposals")

    @property
    def rounds(self) -> tuple[str, ...]:
        return ("segmentation",) if self.trained else ()

    def check_clip(self, model: str, place: str) -> None:
        check_severed_layers(self.severance.alpha, model, place)

    @property
    def described_prompts(self) -> str:
        return describe_templates(self.templates) if self.templates else _LEARNED[self.text_prompts]

    @classmethod
    def combined(cls, profile: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        """The profile says how a part is built where an experiment has it, not whether it has it.

        Of a part that is off nothing is kept. An experiment's alphas replace the profile's as a whole.
        """
        network, values = cls.model_validate(own), merged(profile, own)
        for part, settings in (("severance", network.severance), ("anchors", network.anchors)):
            if settings.kind == "none":
                values.pop(part, None)
        if network.severance.alpha:
            values["severance"]["alpha"] = own["severance"]["alpha"]
        if network.severance.kind != "mps":  # the rows of no other kind: they are not to make it another job
            values.get("severance", {}).pop("rows", None)
        return values


_IN_TRAINING = (
    "head_hidden",
    "unit_no_object",
    "proposal_templates",
    "logit_scale",
    "class_weight",
    "no_object_weight",
)


class MultiPassSettings(MethodSettings):
    """What the multi-pass systems have in common; the defaults are those of both releases, but for ``crop_resampling``.

    head_hidden: hidden widths of the class head, which takes query states to CLIP's joint space.
    unit_no_object: the learned row "no object" has unit length, like the rows of names.
    proposal_templates, crop_templates: prompts of the two streams, of which the mean embedding is taken: the name of a
        set (:data:`deop.settings.templates.SETS`), or a list with ``{}`` for the class name; none for the learned text
        prompt.
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
    logit_scale: AboveZero | None = None
    class_weight: NotNegative = 1.0
    no_object_weight: AboveZero = 0.1
    mask_threshold: Fraction = 0.5
    crop_expand: AboveZero = 1.0
    crop_resampling: Literal["antialias", "release"] = "antialias"
    crop_size: Positive | None = None
    crop_batch: Positive = 128
    without_crop: Literal["one", "uniform", "zero"] = "one"

    @property
    def parts(self) -> tuple[Part, ...]:
        learned = not (self.proposal_templates and self.crop_templates)
        return ("clip", "prompts", "backbone") if learned else ("clip", "backbone")

    @property
    def described_prompts(self) -> str:
        of_proposals, of_crops = (
            describe_templates(templates) if templates else _LEARNED["offline"]
            for templates in (self.proposal_templates, self.crop_templates)
        )
        return (
            of_proposals
            if of_proposals == of_crops
            else f"{of_proposals} for proposals, {of_crops} for crops"
        )

    @property
    def rounds(self) -> tuple[str, ...]:
        """As long as the class-agnostic proposals, with the same settings, which were chosen for those."""
        return ("proposals",)

    def for_training(self) -> MultiPassSettings:
        """How crops are made and the streams are combined is no reason to train again.

        Crops play no part in training, so their stream is given the prompts of the other.
        """
        values = self.model_dump(include={"method", *_IN_TRAINING})
        return type(self)(**values | {"crop_templates": values["proposal_templates"]})


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


METHODS: dict[str, type[MethodSettings]] = {
    "deop": DeOPSettings,
    "simbaseline": SimBaselineSettings,
    "zegformer": ZegFormerSettings,
    "spnet": SPNetSettings,
    "lseg": LSegSettings,
    "zs3net": ZS3NetSettings,
    "cagnet": CaGNetSettings,
    "openseg": OpenSegSettings,
}
"""The settings of each method by its name; methods in files of their own are added when they are first asked for."""
_CLASSES: dict[str, type] = {}
_SETTINGS_IN = {"training_free": "deop.settings.training_free"}
"""Built-in methods whose settings are in a module of their own."""


def method(settings: type[MethodSettings]) -> Callable[[Class], Class]:
    """Class decorator: registers a segmenter as the method that its module is called by, with these ``settings``."""

    def register(segmenter: Class) -> Class:
        name = segmenter.__module__.removeprefix("deop.methods.")
        METHODS[name], _CLASSES[name] = settings, segmenter
        return segmenter

    return register


def method_settings(name: str, place: str = "method") -> type[MethodSettings]:
    """The settings of a method.

    Args:
        name: of the method.
        place: where the method is named, for the error.

    Raises:
        ConfigError: no module of that name, or one that registers no method.
    """
    if name not in METHODS and name in _SETTINGS_IN:
        METHODS[name] = importlib.import_module(_SETTINGS_IN[name]).SETTINGS
    if name not in METHODS:
        _import(name, place)
    return METHODS[name]


def method_class(name: str) -> type:
    """The subclass of :class:`deop.methods.base.Segmenter` that implements a method; imports torch.

    Raises:
        ConfigError: as :func:`method_settings`.
    """
    if name not in _CLASSES:
        _import(name, "method")
    return _CLASSES[name]


def _import(name: str, place: str) -> None:
    module = name if "." in name else f"deop.methods.{name}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise unknown(place, "method", name, METHODS) from None
    if name not in _CLASSES:
        raise ConfigError(f"{place}: module {module} registers no method; see docs/adding-a-method.md")
