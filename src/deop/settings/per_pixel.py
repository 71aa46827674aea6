"""What per-pixel systems may be told: SPNet, ZS3Net, CaGNet, LSeg and OpenSeg.

The defaults are those of each system's release, as far as it has them. All are trained with AdamW, like every method
here, where the releases use SGD or several optimisers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deop.settings.base import AboveZero, Fraction, NotNegative, Positive, Whole
from deop.settings.method_base import MethodSettings, Part
from deop.settings.schedule import Augmentation, Schedule
from deop.settings.templates import Templates, describe_templates

Weight = NotNegative


class Round(Schedule):
    """A round of training of a per-pixel system. ``backbone_lr_factor`` is for its pre-trained backbone."""

    iterations: Whole = 40000
    batch_size: Positive = 16
    backbone_lr_factor: NotNegative = 0.1
    augmentation: Augmentation = Augmentation(crop=480)


class PerPixelSettings(MethodSettings):
    """What per-pixel systems have in common.

    They start from the backbone of ``proposals``, with the weights it is pre-trained with, and make no proposals.

    width: channels of the pixel features.
    dilations: of the parallel 3x3 convolutions on the deepest features, which are summed (DeepLabV2's ASPP).
    templates: prompts of the CLIP text encoder that embeds class names, of which the mean is taken; the bare name by
        default.
    word_vectors: files of word vectors that embed class names instead of CLIP: word2vec's binary format (``.bin``) or
        fastText's text format (``.vec``), each also gzipped. With several, the vectors are concatenated.
    """

    width: Positive = 256
    dilations: tuple[Positive, ...] = (6, 12, 18, 24)
    templates: Templates = ("{}",)
    word_vectors: tuple[str, ...] = ()
    training: Round = Round()

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("backbone",) if self.word_vectors else ("clip", "backbone")

    @property
    def rounds(self) -> tuple[str, ...]:
        return ("training",)

    @property
    def files(self) -> tuple[str, ...]:
        return self.word_vectors

    @property
    def described_prompts(self) -> str:
        if self.word_vectors:
            return "word vectors, no text encoder"
        return f"CLIP's text encoder, {describe_templates(self.templates)}"


class SPNetSettings(PerPixelSettings):
    """SPNet. ``calibration`` is subtracted from the probability of every seen class (0.4 in the release on COCO)."""

    method: Literal["spnet"] = "spnet"
    calibration: Fraction = 0.0

    def for_training(self) -> SPNetSettings:
        return self.model_copy(update={"calibration": 0.0})


class LSegSettings(PerPixelSettings):
    """LSeg. ``temperature`` divides the cosines.

    regularisation: blocks on the label maps; ``bottleneck`` adds the maximum over the labels to every map.
    blocks: number of regularisation blocks.
    """

    method: Literal["lseg"] = "lseg"
    temperature: AboveZero = 0.07
    regularisation: Literal["none", "depthwise", "bottleneck"] = "none"
    blocks: Positive = 1


class GenerativeSettings(PerPixelSettings):
    """What systems with a generator of pixel features have in common.

    positions: pixels of a class and an image that real and generated features are compared on.
    fit_steps, fit_samples: the classifier of a vocabulary that was not trained on is fitted to this many batches of
        generated features, with this many of each class.
    """

    positions: Positive = 128
    fit_steps: Positive = 300
    fit_samples: Positive = 8


class ZS3NetSettings(GenerativeSettings):
    """ZS3Net, without self-training unless ``self_training`` gives its schedule (ZS5Net).

    hidden: hidden width of the generator.
    noise: values of noise it is given; None is as many as the class embedding has.
    generator, classifier: schedules of the second and third round.
    unseen_share: generated features of unseen classes, as a share of the real ones in a batch.
    unseen_weight: weight of unseen classes in the cross-entropy (100 in the release on VOC).
    confident: share of the pixels without a label of an image that self-training keeps.
    """

    method: Literal["zs3net"] = "zs3net"
    hidden: Positive = 256
    noise: Positive | None = None
    generator: Round = Round()
    classifier: Round = Round()
    unseen_share: AboveZero = 0.25
    unseen_weight: AboveZero = 100.0
    self_training: Round | None = None
    confident: Fraction = 0.25

    @property
    def rounds(self) -> tuple[str, ...]:
        last = () if self.self_training is None else ("self_training",)
        return ("training", "generator", "classifier", *last)


class CaGNetSettings(GenerativeSettings):
    """CaGNet. ``training`` is the release's step 1; ``finetuning`` adds step 2, with the backbone fixed.

    context_width: channels of the contextual module.
    generator_hidden: hidden widths of the generator, each with the dropout at its place in ``generator_dropout``.
    classifier_hidden, classifier_dropout: width and dropout of the layer that classifier and discriminator share.
    kl_weight, content_weight, adversarial_weight: weights of the losses.
    unseen_boost: how many times likelier than a seen class an unseen one is in a generated map, minus one.
    generated_weight: weight of the cross-entropy of generated maps.
    """

    method: Literal["cagnet"] = "cagnet"
    width: Positive = 600
    context_width: Positive = 256
    generator_hidden: tuple[Positive, ...] = (1024, 960, 864, 784, 720)
    generator_dropout: tuple[Fraction, ...] = (0.1, 0.1, 0.3, 0.5, 0.5)
    classifier_hidden: Positive = 1024
    classifier_dropout: Fraction = 0.5
    kl_weight: Weight = 100.0
    content_weight: Weight = 50.0
    adversarial_weight: Weight = 1.0
    finetuning: Round = Round()
    unseen_boost: Weight = 9.0
    generated_weight: Weight = 0.125

    @property
    def rounds(self) -> tuple[str, ...]:
        return ("training", "finetuning")


class OpenSegSettings(PerPixelSettings):
    """OpenSeg.

    queries: number of class-agnostic masks.
    heads: of the queries' attention.
    mask_weight: weight of the mask loss beside the grounding loss.
    keep_words: share of the words of a caption that a step keeps.
    captions: of the training images: the path of a CSV with columns ``image`` (a path, from the CSV's folder) and
        ``words`` (separated by semicolons), which ``deop caption-words`` makes. Without, they name the classes in the
        images, those without labels too.
    more_captions: captioned images without labels in every batch besides: ``scenes``, newly drawn EmojiScenes of all
        concepts by both artists; or the path of another such CSV.
    more_images: how many of these for each labelled image.
    """

    method: Literal["openseg"] = "openseg"
    width: Positive = 640
    queries: Positive = 128
    heads: Positive = 8
    mask_weight: Weight = 1.0
    keep_words: Annotated[float, Field(gt=0, le=1)] = 0.5
    captions: str | None = None
    more_captions: str | None = None
    more_images: Positive = 1

    @property
    def files(self) -> tuple[str, ...]:
        captions = (path for path in (self.captions, self.more_captions) if path not in (None, "scenes"))
        return (*super().files, *captions)
