"""Stage ``learn_prompts``: text prompts learned offline, by classifying segments of seen classes (section 3.2).

SimBaseline's recipe: cross-entropy between CLIP's image embeddings of crops, cut by ground-truth masks, and the class
embeddings of the prompt. CLIP is frozen and the crops are not augmented, so their embeddings are computed once. (The
released code augments the crops: random parts, resized bilinearly and flipped at random.)
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deop.data.segmentation import SegmentationDataset
from deop.jobs.artifacts import TENSORBOARD, artifact
from deop.jobs.job import Job
from deop.methods.base import normalise
from deop.methods.builder import build_clip, build_prompt
from deop.models.clip import DenseCLIP
from deop.models.crops import bounding_boxes, crop_segment, draw_segments
from deop.models.prompts import TextPrompt
from deop.models.weight_files import save_weights
from deop.settings.stages import Clip, TextPrompts
from deop.training.loop import fit, make_accelerator
from deop.training.optim import cosine
from deop.utils.files import whole_file
from deop.utils.precision import in_float32
from deop.utils.progress import progress_bar

_EMBEDDING_BATCH = 64
EMBEDDINGS = "embeddings.safetensors"


class PromptStep(nn.Module):
    """A text prompt and its classification loss on embedded crops."""

    def __init__(self, clip: DenseCLIP, prompt: TextPrompt, names: list[str], logit_scale: float) -> None:
        super().__init__()
        self.clip, self.prompt, self.names, self.logit_scale = clip, prompt, names, logit_scale

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        classes = self.prompt(self.clip, self.names).float()
        with in_float32(classes.device):
            logits = self.logit_scale * batch["embedding"].float() @ classes.T
        return {"cross_entropy": F.cross_entropy(logits, batch["label"])}


class EmbeddingBatches(torch.utils.data.Dataset):
    """Random batches of embedded crops by step number: ``embedding`` (B, D) and ``label`` (B,)."""

    def __init__(self, embeddings: Tensor, labels: Tensor, *, batch_size: int, steps: int, seed: int) -> None:
        self.embeddings, self.labels = embeddings, labels
        self.batch_size, self.steps, self.seed = batch_size, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        chosen = np.random.default_rng((self.seed, step)).integers(len(self.labels), size=self.batch_size)
        return {"embedding": self.embeddings[chosen], "label": self.labels[chosen]}


def normalised_crop(
    image: Tensor,
    mask: Tensor,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    fill: Literal["mean", "release"],
) -> Tensor:
    """CLIP's input for one segment: its box, resized and normalised, with ``crop_fill`` around the segment.

    In the releases of SimBaseline and of DeOP, the fill comes last: the mask is resized without interpolation, and
    outside of it the normalised crop is set to ``mean``, which corresponds to the colour ``mean + mean * std``.

    Args:
        image: (3, H, W) in [0, 1].
        mask: (H, W) bool, not empty.
        mean, std: CLIP's, per channel.
        fill: :attr:`deop.settings.stages.TextPrompts.crop_fill`.

    Returns:
        (3, size, size).
    """
    if fill == "mean":
        return normalise(crop_segment(image, mask, size, torch.tensor(mean)), mean, std)
    [(top, bottom, left, right)] = bounding_boxes(mask[None])
    mask = mask[top:bottom, left:right]
    cut = crop_segment(image[:, top:bottom, left:right], torch.ones_like(mask), size, torch.tensor(mean))
    shown = F.interpolate(mask[None, None].float(), (size, size), mode="nearest-exact")[0].bool()
    return torch.where(shown, normalise(cut, mean, std), cut.new_tensor(mean).view(3, 1, 1))


@torch.inference_mode()
def embed_segments(
    clip: DenseCLIP,
    dataset: SegmentationDataset,
    segments: list[tuple[int, int]],
    size: int,
    fill: Literal["mean", "release"],
    device: torch.device,
) -> Tensor:
    """CLIP's image embeddings (S, D), L2-normalised, of segments (image index, class) of a dataset.

    ``size`` and ``fill`` are ``crop_size`` and ``crop_fill`` of :class:`deop.settings.stages.TextPrompts`.
    """
    embeddings = []
    for first in progress_bar(range(0, len(segments), _EMBEDDING_BATCH), desc="embed crops"):
        crops = []
        for index, label in segments[first : first + _EMBEDDING_BATCH]:
            sample = dataset[index]
            mask = sample.label == label
            crops.append(normalised_crop(sample.image.float() / 255, mask, size, clip.mean, clip.std, fill))
        images = torch.stack(crops).to(device)
        embeddings.append(F.normalize(clip.visual(images).pooled.float(), dim=-1).cpu())
    return torch.cat(embeddings)


def run(job: Job) -> None:
    """Learns the prompt of ``job.settings["prompts"]`` on the seen classes and writes it."""
    settings = TextPrompts.model_validate(job.settings["prompts"])
    torch.manual_seed(job.seed)
    dataset = SegmentationDataset(job.inputs["data"], "train", seen_only=True).check_labels()
    clip = build_clip(Clip.model_validate(job.settings["clip"]), job.inputs.get("clip"))
    prompt = build_prompt(settings, clip)
    # Every crop shows an object, so "no object" is learned in the segmentation stage.
    prompt.no_object.requires_grad_(False)
    with artifact(job, resumes=(TENSORBOARD,)) as workspace:
        accelerator = make_accelerator(job.precision, workspace.path / TENSORBOARD)
        clip.to(accelerator.device)
        segments = draw_segments(dataset, settings.samples_per_class, job.seed)
        # A resumed run has the same key, so its embeddings are the same.
        kept = workspace.state / EMBEDDINGS
        if kept.exists():
            embeddings = load_file(kept)["embeddings"]
        else:
            embeddings = embed_segments(
                clip, dataset, segments, settings.crop_size, settings.crop_fill, accelerator.device
            )
            with whole_file(kept) as temporary:  # every process writes the same file
                save_file({"embeddings": embeddings}, temporary)
        labels = torch.tensor([label for _, label in segments])
        step = PromptStep(clip, prompt, dataset.names, settings.logit_scale or clip.logit_scale)
        optimizer = torch.optim.SGD(
            [prompt.context], lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        fit(
            step,
            EmbeddingBatches(
                embeddings.clone(),
                labels,
                batch_size=settings.batch_size,
                steps=settings.iterations,
                seed=job.seed,
            ),
            workers=0,  # the embeddings are in memory
            optimizer=optimizer,
            schedule=cosine(settings.iterations, settings.warmup),
            iterations=settings.iterations,
            seed=job.seed,
            workspace=workspace,
            accelerator=accelerator,
            description="learn_prompts",
        )
        save_weights(prompt.state_dict(), workspace.path)
