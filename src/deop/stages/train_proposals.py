"""Stage ``train_proposals``: the class-agnostic mask proposal network, on masks of seen classes (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deop.data.segmentation import HIDDEN
from deop.jobs.artifacts import TENSORBOARD, artifact
from deop.jobs.job import Job
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from deop.methods.builder import build_clip, build_prompt, build_proposals
from deop.methods.multipass import ClassHead, classification_loss
from deop.models.proposals import Pairs, ProposalNetwork
from deop.models.weight_files import save_weights
from deop.settings.stages import ClassTerm, Clip, Proposals, TextPrompts
from deop.training.loop import Training, fit_on_images, make_accelerator, training_dataset
from deop.training.optim import adamw


class ClassLoss(nn.Module):
    """The release's classification loss besides the mask losses: a class head in CLIP's text space.

    Args:
        settings: the head and the weights.
        width: channels of the query states.
        text: (C, D) embeddings of the names of the seen classes, L2-normalised; frozen.
        logit_scale: factor of the cosines.
    """

    def __init__(self, settings: ClassTerm, width: int, text: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.settings, self.logit_scale = settings, logit_scale
        self.head = ClassHead(width, text.shape[1], settings.head_hidden, unit_no_object=True)
        self.register_buffer("text", text, persistent=False)

    def forward(self, states: Tensor, pairs: Sequence[Pairs]) -> Tensor:
        """The weighted loss of query states (layers, B, N, width), matched as ``pairs`` say."""
        logits = self.head(states, self.text, self.logit_scale)
        return self.settings.weight * classification_loss(logits, pairs, self.settings.no_object_weight)


class ProposalStep(nn.Module):
    """A proposal network and its losses on a batch: the mask losses, and a classification loss if it has one."""

    def __init__(self, network: ProposalNetwork, class_loss: ClassLoss | None = None) -> None:
        super().__init__()
        self.network, self.class_loss = network, class_loss

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images, labels = normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD), batch["label"]
        if self.class_loss is None:
            return self.network.loss(self.network(images), labels, ignore=HIDDEN)
        states, outputs = self.network.decode(images)
        # The matching is class-agnostic also with a class term, as in the release.
        losses, pairs = self.network.matched_loss(outputs, labels, ignore=HIDDEN)
        return {"class": self.class_loss(states, pairs), **losses}

    def denominators(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """By name of a loss, the number of items in a batch that it is a mean over."""
        no_object = 0.0 if self.class_loss is None else self.class_loss.settings.no_object_weight
        return self.network.denominators(batch["label"], ignore=HIDDEN, no_object_weight=no_object)

    def networks(self, batch: dict[str, Tensor]) -> Tensor:
        """A scalar computed from the masks of all layers."""
        outputs = self.network(normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD))
        return torch.stack(outputs).float().mean()


def build_step(job: Job, names: list[str]) -> ProposalStep:
    """The network of ``job.settings["proposals"]`` and its losses, for seen classes with ``names``."""
    settings = Proposals.model_validate(job.settings["proposals"])
    network = build_proposals(settings, backbone=job.inputs.get("backbone"))
    if settings.class_term is None:
        return ProposalStep(network)
    clip = build_clip(Clip.model_validate(job.settings["clip"]), job.inputs.get("clip"))
    prompt = build_prompt(
        TextPrompts.model_validate(job.settings["prompts"]), clip, job.inputs.get("prompts")
    )
    with torch.no_grad():
        text = prompt(clip, names)
    return ProposalStep(network, ClassLoss(settings.class_term, network.width, text, clip.logit_scale))


def training(job: Job) -> Training:
    """The network of ``job.settings["proposals"]``, to be trained on the job's dataset."""
    settings = Proposals.model_validate(job.settings["proposals"])
    torch.manual_seed(job.seed)
    dataset = training_dataset(job)
    step = build_step(job, dataset.names)
    # The backbone is pre-trained, and learns more slowly.
    optimizer = adamw(step, settings, {"network.backbone.": settings.backbone_lr_factor})
    return Training(step, optimizer, dataset, settings)


def run(job: Job) -> None:
    """Trains the network of ``job.settings["proposals"]`` and writes its weights."""
    trained = training(job)
    with artifact(job, resumes=(TENSORBOARD,)) as workspace:
        accelerator = make_accelerator(job.precision, workspace.path / TENSORBOARD)
        fit_on_images(trained, job, workspace=workspace, accelerator=accelerator)
        save_weights(trained.module.network.state_dict(), workspace.path)
