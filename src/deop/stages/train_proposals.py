"""Stage ``train_proposals``: the class-agnostic mask proposal network, on masks of seen classes (section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deop.data.segmentation import HIDDEN
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from deop.proposals import ProposalNetwork
from deop.settings import Job, Proposals
from deop.stages.artifacts import artifact
from deop.stages.loop import Training, fit_on_images, make_accelerator, training_dataset
from deop.stages.networks import build_proposals, save_weights, seed_everything
from deop.stages.optim import parameter_groups


class ProposalStep(nn.Module):
    """A proposal network and its mask losses on a batch."""

    def __init__(self, network: ProposalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.network(normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD))
        return self.network.loss(outputs, batch["label"], ignore=HIDDEN)

    def denominators(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """By loss, the number of segments in a batch: both losses are means over these."""
        masks = self.network.count_segments(batch["label"], ignore=HIDDEN)
        return {"focal": masks, "dice": masks}

    def networks(self, batch: dict[str, Tensor]) -> Tensor:
        """A scalar of the masks of all layers."""
        outputs = self.network(normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD))
        return torch.stack(outputs).float().mean()


def training(job: Job) -> Training:
    """The network of ``job.settings["proposals"]``, to be trained on the dataset that the job has as input."""
    settings = Proposals.model_validate(job.settings["proposals"])
    seed_everything(job)
    dataset = training_dataset(job)
    network = build_proposals(job)
    optimizer = proposal_optimizer(network, "backbone.", settings)
    return Training(ProposalStep(network), optimizer, dataset, settings)


def run(job: Job) -> None:
    """Trains the network of ``job.settings["proposals"]`` and writes its weights."""
    trained = training(job)
    with artifact(job) as workspace:
        accelerator = make_accelerator(workspace.path / "tensorboard")
        fit_on_images(trained, job, workspace=workspace, accelerator=accelerator)
        save_weights(trained.module.network.state_dict(), workspace.path)


def proposal_optimizer(module: nn.Module, backbone: str, settings: Proposals) -> torch.optim.AdamW:
    """AdamW over everything that ``module`` learns.

    ``backbone`` is how the names of the proposal network's backbone start; it is pre-trained, and learns more slowly.
    """
    groups = parameter_groups(
        module,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        lr_factors={backbone: settings.backbone_lr_factor},
        decay_biases=settings.decay_biases,
    )
    return torch.optim.AdamW(groups, fused=True)
