"""CaGNet: a generator of pixel features steered by a contextual latent code, with an adversary.

Gu et al., "Context-aware Feature Generation for Zero-shot Semantic Segmentation" (ACM MM 2020). Two rounds: everything
on real features of seen classes; then, with the backbone fixed, generated maps of all classes as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from deop.methods.dense import pixel_loss
from deop.methods.generative import GenerativeSegmenter, as_pixels, at_pixels
from deop.models.generators import CAGNET_BANDWIDTHS, Generator, class_positions, class_sets, mmd
from deop.settings.methods import method
from deop.settings.per_pixel import CaGNetSettings

REAL_WEIGHT, BACKBONE_WEIGHT = 0.75, 0.5
"""Of the classification of real features: the classifier's when fine-tuning, and the backbone's."""


class Context(NamedTuple):
    """Real features in (0, 1); mean and log-variance of the latent code, and the code; each (B, D, h, w)."""

    features: Tensor
    mean: Tensor
    log_variance: Tensor
    code: Tensor


class ContextualModule(nn.Module):
    """Three scales of context, weighted at every pixel, give a latent code that also steers the features.

    Args:
        width: channels D of the features.
        context_width: channels of each scale.
    """

    def __init__(self, width: int, context_width: int) -> None:
        super().__init__()
        inputs = (width, context_width, context_width)
        self.scales = nn.ModuleList(
            nn.Conv2d(channels, context_width, 3, padding=dilation, dilation=dilation)
            for channels, dilation in zip(inputs, (1, 2, 5), strict=True)
        )
        self.selector = nn.Conv2d(3 * context_width, 3, 3, padding=1)
        self.merge = nn.Conv2d(3 * context_width, width, 1)
        self.mean = nn.Conv2d(width, width, 3, padding=1)
        self.log_variance = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor, *, sample: bool) -> Context:
        """Of features (B, D, h, w) before their sigmoid; without ``sample``, the code is its mean."""
        scales, current = [], features.sigmoid()
        for convolution in self.scales:
            current = convolution(current).relu()
            scales.append(current)
        weights = self.selector(torch.cat(scales, dim=1)).sigmoid()
        weighted = torch.cat([scale * weights[:, i : i + 1] for i, scale in enumerate(scales)], dim=1)
        merged = self.merge(weighted).relu()
        code = mean = self.mean(merged)
        log_variance = self.log_variance(merged).relu()
        if sample:
            code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return Context((features + features * code.sigmoid()).sigmoid(), mean, log_variance, code)


class Judge(nn.Module):
    """The layer that discriminator and classifier share, and the discriminator's head."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.real = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of features (P, D): the hidden layer (P, hidden) and how real each is, (P,) in (0, 1)."""
        hidden = self.shared(features)
        return hidden, self.real(hidden)[:, 0].sigmoid()


@method(CaGNetSettings)
class CaGNet(GenerativeSegmenter):
    """In the release, three optimisers step in turn; here each loss reaches only the networks that it is for."""

    settings: CaGNetSettings

    def __init__(self, backbone: nn.Module, settings: CaGNetSettings, **more) -> None:
        super().__init__(backbone, settings, **more)
        width = settings.width
        self.before = nn.Conv2d(width, width, 1)  # features of either sign, as ASPP gives them
        self.context = ContextualModule(width, settings.context_width)
        self.generator = Generator(
            (self.embed_dim + width, *settings.generator_hidden, width),
            settings.generator_dropout,
            sigmoid=True,
            embedding=self.embed_dim,
        )
        self.judge = Judge(width, settings.classifier_hidden, settings.classifier_dropout)
        self.classifier = nn.Linear(settings.classifier_hidden, len(self.class_names))
        self._round = "training"

    def start_round(self, name: str) -> None:
        self._round = name
        for part in (self.features, self.before, self.context):
            part.requires_grad_(name == "training")

    def train(self, mode: bool = True) -> CaGNet:
        super().train(mode)
        if self._round == "finetuning":
            self.features.eval()
        return self

    def generate(self, embeddings: Tensor) -> Tensor:
        """The shared layer's output for features generated with a standard normal code."""
        code = torch.randn(*embeddings.shape[:-1], self.settings.width, device=embeddings.device)
        return self.judge(self.generator(embeddings, code))[0]

    def pixel_scores(self, images: Tensor, names: list[str]) -> Tensor:
        features = self.context(self.before(self.features(images)), sample=False).features
        hidden, _ = self.judge(as_pixels(features))
        return at_pixels(F.linear(hidden, *self.rows(names)), features)

    def losses(self, images: Tensor, labels: Tensor, names: list[str], **more: Tensor) -> dict[str, Tensor]:
        """Weighted losses: ``pixels`` (classification), ``kl``, ``real``, ``fake``, ``content`` and ``generated``.

        ``real`` and ``fake`` are the adversarial loss, on real features and on generated ones.

        The judge learns to classify and to tell real from generated features, the backbone and the contextual module
        from classification and the divergence of the code, the generator from the content loss and from the judge.
        """
        settings, coarse = self.settings, self.coarse(labels)
        context = self.context(self.before(self.pixel_features(images)), sample=True)
        labelled = coarse.flatten() >= 0
        real = as_pixels(context.features)
        hidden, realness = self.judge(real.detach())
        losses = {
            "pixels": (1.0 if self._round == "training" else REAL_WEIGHT)
            * pixel_loss(at_pixels(F.linear(hidden, *self.rows(names)), context.features), coarse)
        }
        if self._round == "training":
            frozen, _ = _frozen(self.judge, real)
            scores = F.linear(frozen, *(value.detach() for value in self.rows(names)))
            losses["backbone"] = BACKBONE_WEIGHT * pixel_loss(at_pixels(scores, context.features), coarse)
            divergence = 1 + context.log_variance - context.mean.square() - context.log_variance.exp()
            losses["kl"] = -0.5 * settings.kl_weight * divergence.mean()
        positions, classes = class_positions(coarse, settings.positions)
        known = self.indices(names).to(classes.device)[classes]
        embeddings = self.embeddings(list(self.class_names))[known][:, None].expand(
            -1, settings.positions, -1
        )
        code = as_pixels(context.code).detach()[positions]
        generated = self.generator(embeddings, code)
        discrepancy = mmd(generated, real.detach()[positions], CAGNET_BANDWIDTHS)
        losses["content"] = settings.content_weight * (
            discrepancy.mean() if len(classes) else generated.sum()
        )
        fake = generated.flatten(0, 1)
        _, of_fake = self.judge(fake.detach())
        _, fooled = _frozen(self.judge, fake)
        real_errors, fake_errors = 1 - realness[labelled], of_fake + 1 - fooled
        for name, errors in (("real", real_errors), ("fake", fake_errors)):
            losses[name] = settings.adversarial_weight * errors.sum() / max(1, len(errors))
        if self._round == "finetuning":
            losses["generated"] = settings.generated_weight * self._map_loss(int(labelled.sum()))
        return losses

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        pixels = super().denominators(labels)["pixels"]
        sets = class_sets(self.coarse(labels))
        of_pixels = dict.fromkeys(("pixels", "backbone", "real", "generated"), pixels)
        return of_pixels | dict.fromkeys(("fake", "content"), sets)

    def _map_loss(self, count: int) -> Tensor:
        """Cross-entropy of ``count`` generated features, of classes drawn independently, unseen ones more often."""
        device = self.classifier.weight.device
        odds = torch.ones(len(self.class_names), device=device)
        odds[self.unseen.to(device)] += self.settings.unseen_boost
        drawn = torch.multinomial(odds, max(1, count), replacement=True)
        embeddings = self.embeddings(list(self.class_names))[drawn]
        with torch.no_grad():
            code = torch.randn(len(drawn), self.settings.width, device=device)
            features = self.generator(embeddings, code)
        return F.cross_entropy(self.classifier(self.judge(features)[0]).float(), drawn)


def _frozen(judge: Judge, features: Tensor) -> tuple[Tensor, Tensor]:
    """What the judge says, with gradients for the features alone."""
    return functional_call(
        judge, {name: value.detach() for name, value in judge.named_parameters()}, features
    )
