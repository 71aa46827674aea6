"""ZS3Net: a generator from class embeddings to pixel features, and a classifier retrained with what it generates.

Bucher et al., "Zero-Shot Semantic Segmentation" (NeurIPS 2019). Three rounds of training: the segmenter on seen
classes; the generator on its frozen features; the last layer alone on real features of seen classes and generated ones
of unseen classes. A fourth one, self-training, is optional (ZS5Net).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.data.segmentation import HIDDEN
from deop.methods.dense import pixel_loss
from deop.methods.generative import GenerativeSegmenter, as_pixels, at_pixels
from deop.models.generators import ZS3_BANDWIDTHS, Generator, class_positions, class_sets, mmd
from deop.settings.methods import method
from deop.settings.per_pixel import ZS3NetSettings

DROPOUT = 0.5


@method(ZS3NetSettings)
class ZS3Net(GenerativeSegmenter):
    """Unlike in the release, the layout of unseen classes is not used: classes of generated features are drawn."""

    settings: ZS3NetSettings

    def __init__(self, backbone: nn.Module, settings: ZS3NetSettings, **more) -> None:
        super().__init__(backbone, settings, **more)
        noise = settings.noise or self.embed_dim
        widths = (self.embed_dim + noise, settings.hidden, settings.width)
        self.generator = Generator(widths, (DROPOUT,), sigmoid=False, embedding=self.embed_dim)
        self.classifier = nn.Linear(settings.width, len(self.class_names))
        self._round = "training"
        self._teacher: list[ZS3Net] = []  # not a module of this one: it is neither trained nor saved

    def start_round(self, name: str) -> None:
        self._round = name
        learning = {
            "training": (self.features, self.classifier),
            "generator": (self.generator,),
            "classifier": (self.classifier,),
            "self_training": (self.features, self.classifier),
        }[name]
        for part in (self.features, self.generator, self.classifier):
            part.requires_grad_(part in learning)
        if name == "classifier":
            self.classifier.reset_parameters()
        if name == "self_training":
            teacher = copy.copy(self)
            teacher._modules = {
                key: copy.deepcopy(value) if key in ("features", "classifier") else value
                for key, value in self._modules.items()
            }
            self._teacher = [teacher.requires_grad_(False).eval()]
            for part in learning:
                part.requires_grad_(True)

    def train(self, mode: bool = True) -> ZS3Net:
        """Batch norms keep their statistics in the rounds that do not train the features."""
        super().train(mode)
        if self._round in ("generator", "classifier"):
            self.features.eval()
        return self

    def generate(self, embeddings: Tensor) -> Tensor:
        noise = torch.rand(*embeddings.shape[:-1], self.generator.noise, device=embeddings.device)
        return self.generator(embeddings, noise)

    def pixel_scores(self, images: Tensor, names: list[str]) -> Tensor:
        features = self.features(images)
        return at_pixels(F.linear(as_pixels(features), *self.rows(names)), features)

    def losses(self, images: Tensor, labels: Tensor, names: list[str], **more: Tensor) -> dict[str, Tensor]:
        """In turn: cross-entropy of seen classes; the MMD of the generator; cross-entropy with generated features."""
        coarse = self.coarse(labels)
        if self._round == "training":
            features = self.pixel_features(images)
            scores = F.linear(as_pixels(features), *self.rows(names))
            return {"pixels": pixel_loss(at_pixels(scores, features), coarse)}
        if self._round == "self_training":
            features = self.pixel_features(images)
            scores = F.linear(as_pixels(features), self.classifier.weight, self.classifier.bias)
            return {
                "pixels": pixel_loss(at_pixels(scores, features), self.pseudo_labels(images, coarse, names))
            }
        with torch.no_grad():
            features = as_pixels(self.pixel_features(images)).float()
        if self._round == "generator":
            positions, classes = class_positions(coarse, self.settings.positions)
            embeddings = self.embeddings(names)[classes]
            generated = self.generate(embeddings[:, None].expand(-1, self.settings.positions, -1))
            discrepancy = mmd(generated, features[positions], ZS3_BANDWIDTHS)
            return {"mmd": discrepancy.mean() if len(classes) else generated.sum()}
        return {"classes": self._classifier_loss(features, coarse.flatten(), names)}

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        """Labelled pixels; sets of features of a class in an image; pixels and generated features by their weights."""
        coarse, settings = self.coarse(labels), self.settings
        labelled = (coarse >= 0).sum()
        if self._round == "generator":
            return {"mmd": class_sets(coarse)}
        if self._round == "classifier":
            generated = round(settings.unseen_share * int(labelled)) if len(self.unseen) else 0
            return {"classes": labelled + settings.unseen_weight * generated}
        if self._round == "self_training":
            hidden = (coarse == HIDDEN).flatten(1).sum(1).tolist()
            return {"pixels": labelled + sum(round(settings.confident * count) for count in hidden)}
        return {"pixels": labelled}

    def _classifier_loss(self, features: Tensor, labels: Tensor, names: list[str]) -> Tensor:
        labelled = labels >= 0
        real, targets = features[labelled], self.indices(names).to(labels.device)[labels[labelled]]
        unseen = self.unseen.to(labels.device)
        count = round(self.settings.unseen_share * len(real)) if len(unseen) else 0
        if count:
            drawn = unseen[torch.randint(len(unseen), (count,), device=labels.device)]
            with torch.no_grad():
                generated = self.generate(self.embeddings(list(self.class_names))[drawn])
            real, targets = torch.cat([real, generated.to(real.dtype)]), torch.cat([targets, drawn])
        weights = torch.ones(len(self.class_names), device=labels.device)
        weights[unseen] = self.settings.unseen_weight
        if not len(real):
            return self.classifier(features).sum() * 0
        return F.cross_entropy(self.classifier(real).float(), targets, weights)

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor, labels: Tensor, names: list[str]) -> Tensor:
        """Labels (B, h, w) among ``class_names``: the given ones, and the teacher's where it is most confident.

        Of the pixels of an image that have an unseen class, it labels the share ``confident``.
        """
        [teacher] = self._teacher
        scores = teacher.to(images.device)(images, list(self.class_names)).scores.float().softmax(1)
        confidence, predicted = scores.max(1)
        targets = torch.where(labels >= 0, self.indices(names).to(labels.device)[labels.clamp(min=0)], labels)
        for image in range(len(labels)):
            hidden = labels[image] == HIDDEN
            kept = round(self.settings.confident * int(hidden.sum()))
            if kept:
                least = confidence[image][hidden].topk(kept).values[-1]
                sure = hidden & (confidence[image] >= least)
                targets[image][sure] = predicted[image][sure]
        return targets
