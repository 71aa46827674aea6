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


class ProposalStep(nn.Module):
    """A proposal network and its mask losses on a batch."""

    def __init__(self, network: ProposalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self.network(normalise(batch["image"], IMAGENET_MEAN, IMAGENET_STD))
        return self.network.loss(outputs, batch["label"], ignore=HIDDEN)

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
    return Training(ProposalStep(network), proposal_optimizer(network, network, settings), dataset, settings)


def run(job: Job) -> None:
    """Trains the network of ``job.settings["proposals"]`` and writes its weights."""
    trained = training(job)
    with artifact(job) as workspace:
        accelerator = make_accelerator(job.precision, workspace.path / "tensorboard")
        fit_on_images(trained, job, workspace=workspace, accelerator=accelerator)
        save_weights(trained.module.network.state_dict(), workspace.path)


def proposal_optimizer(module: nn.Module, network: ProposalNetwork, settings: Proposals) -> torch.optim.AdamW:
    """AdamW over what ``module`` learns, ``network`` with the rest; its backbone goes on learning, but slower."""
    backbone = set(network.backbone.parameters())
    learned = [value for value in module.parameters() if value.requires_grad]
    slower = [value for value in learned if value in backbone]
    return torch.optim.AdamW(
        [
            {"params": [value for value in learned if value not in backbone]},
            {"params": slower, "lr": settings.lr * settings.backbone_lr_factor},
        ],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        fused=True,
    )
