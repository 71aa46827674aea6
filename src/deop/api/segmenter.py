"""A system in use: pictures and words in, segmentations out."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from deop.api.card import model_card
from deop.api.computing import Computing, device_of, dtype_of
from deop.api.pictures import is_list, read_picture
from deop.api.result import Segmentation
from deop.api.vocabulary import Background, Classes, Vocabulary, vocabulary
from deop.errors import DeopError
from deop.jobs.artifacts import provenance_of
from deop.jobs.integrity import PROVENANCE, WEIGHTS
from deop.methods.base import PixelOutput, Segmenter, shares
from deop.methods.graph_segmenter import GraphSegmenter
from deop.methods.inference import prepare
from deop.methods.system import load_system, read_config, save_system
from deop.methods.training_free import TrainingFree
from deop.models.pretrained import in_a_file
from deop.settings.system import CONFIG, SystemConfig
from deop.settings.templates import Templates
from deop.utils.files import file_hash, write_json

MOST_LABELLED = 16_000_000
"""Pixels of a label map that are computed each on its own; in larger pictures, labels are enlarged."""
_LONGEST = 8
"""Longer sides of pictures, in shorter sides: what is longer is made smaller, not computed for minutes."""
_SMALLEST = 32
"""Sides that networks are shown, in pixels, at least."""
_TOGETHER = 8
"""Pictures of one size that the network is shown at once, at most."""


class _Batch(NamedTuple):
    """What a network saw of some pictures of one size, and which of the list they are."""

    indices: list[int]
    encoded: Any
    pictures: list[np.ndarray]


class Encoded(NamedTuple):
    """Pictures as a network saw them, before any words: what ``segmenter(encoded, classes)`` takes.

    several: whether a list was given, so that a list is returned.
    """

    batches: list[_Batch]
    several: bool

    def __len__(self) -> int:
        return sum(len(batch.indices) for batch in self.batches)


class OpenVocabularySegmenter(ModelHubMixin, library_name="deop", tags=["image-segmentation"]):
    """Segments pictures into any classes; :func:`deop.load` makes one. Threads may share it: their calls take turns.

    Args:
        network: the method with its weights.
        settings: what the system's folder says about it.
        device: such as ``"cuda"`` or ``"cpu"``; None is a GPU where there is one.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"`` (or torch's own), which most layers compute in; None is
            float32 on a CPU and what the system was trained in on a GPU; ``"auto"`` tries on a CPU whether bfloat16 is
            faster, for about two seconds.
        provenance: how the system was made, for its model card.
        folder: where it was read from, if it was.

    Raises:
        DeopError: a device or dtype that there is not.
    """

    def __init__(
        self,
        network: Segmenter,
        settings: SystemConfig,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        provenance: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.device = device_of(device)
        self.settings, self.provenance = settings, provenance or {}
        self._folder = folder
        inference = settings.inference.model_dump(exclude={"short_side"})
        self._network = prepare(network, self.device, **inference)
        self.dtype = dtype_of(dtype, settings, self.device, self._run_once)
        self._given: Classes = list(settings.class_names)
        self._default = vocabulary(self._given) if settings.class_names else None
        self._lock = (
            threading.RLock()
        )  # calls change the network: its templates, and what it keeps of names and sizes

    @property
    def name(self) -> str:
        """What the system is called."""
        return self.settings.name

    @property
    def network(self) -> Segmenter:
        """The method with its weights, as it computes: on the device, in evaluation mode."""
        return self._network

    @property
    def classes(self) -> list[str]:
        """The classes of calls without any: those of the training, or of :meth:`set_classes`."""
        return list(self._default.classes) if self._default else []

    def set_classes(self, classes: Classes, background: Background = None) -> Self:
        """Sets the classes of calls without any, and embeds their names now.

        Raises:
            DeopError: as :func:`deop.api.vocabulary.vocabulary`.
        """
        self._given = classes if isinstance(classes, (str, Mapping)) else list(classes)
        self._default = vocabulary(self._given, background)
        with self._lock, self._computing():
            self._network.embed(list(self._default.names))
        return self

    def __call__(
        self,
        pictures: Any,
        classes: Classes | None = None,
        *,
        background: Background = None,
        templates: str | Iterable[str] | None = None,
    ) -> Any:
        """Segments a picture, or each of a list.

        Examples:
            >>> import deop
            >>> segmenter = deop.load("deop-mini/bundled", short_side=64)
            >>> wide = np.zeros((64, 96, 3), np.uint8)
            >>> segmenter(wide, "bear, grass").labels.shape
            (64, 96)
            >>> segmenter(wide, {"sky": ["sky", "clouds"]}, background="bear").classes
            ['sky', 'background']
            >>> len(segmenter([wide, wide], ["bear", "grass"]))
            2

        Args:
            pictures: as :func:`deop.api.pictures.read_picture`, a list of these, or what :meth:`encode` returned.
            classes: ``"bear, grass"``, a list of names, or ``{name: [synonyms]}``, where the score of a class is that
                of its best name; None is :attr:`classes`.
            background: a word or words for what is none of the classes, or the least probability that one of two or
                more classes has to have. Such pixels get the class ``background``. Without, every pixel gets one of the
                classes.
            templates: of systems without training, the prompt templates of this call: ``"imagenet"``, ``"vild"``, or
                texts with ``{}`` for the class name. None are those that the system was loaded with.

        Returns:
            A :class:`deop.api.result.Segmentation`, or a list of them for a list.

        Raises:
            DeopError: classes, pictures or templates that cannot be used.
        """
        wanted = self.vocabulary(classes, background)
        encoded = pictures if isinstance(pictures, Encoded) else self.encode(pictures)
        results: list[Segmentation | None] = [None] * len(encoded)
        with self._lock, self._computing(), self._prompted(templates):
            for batch in encoded.batches:
                for index, result in zip(batch.indices, self._segmented(batch, wanted), strict=True):
                    results[index] = result
        return results if encoded.several else results[0]

    def vocabulary(self, classes: Classes | None, background: Background = None) -> Vocabulary:
        """The classes of a call."""
        if classes is not None:
            return vocabulary(classes, background)
        if self._default is None:
            raise DeopError(
                f"{self.name} has no classes of its own; give some, as in segmenter(picture, ['bear', 'grass'])"
            )
        return self._default if background is None else vocabulary(self._given, background)

    def encode(self, pictures: Any) -> Encoded:
        """What the network sees of pictures; any number of classes may then be asked for at little cost.

        Examples:
            >>> import deop
            >>> segmenter = deop.load("deop-mini/bundled", short_side=64)
            >>> encoded = segmenter.encode(np.zeros((64, 64, 3), np.uint8))
            >>> [segmenter(encoded, words).classes for words in ("bear, grass", "sky, water")]
            [['bear', 'grass'], ['sky', 'water']]

        Of methods that show CLIP other crops for other classes, this is the resized pictures alone.

        Raises:
            DeopError: pictures that cannot be read.
        """
        several = is_list(pictures)
        read = [read_picture(picture) for picture in (pictures if several else [pictures])]
        groups: list[list[int]] = []
        of_size: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(read):
            group = of_size.get(size := tuple(picture.shape))
            if group is None or len(group) == _TOGETHER:
                groups.append(group := [])
                of_size[size] = group
            group.append(index)
        batches = []
        with self._lock, self._computing():
            for indices in groups:
                resized = torch.cat([self._resized(read[index]) for index in indices])
                shown = [read[index].permute(1, 2, 0).numpy() for index in indices]
                batches.append(_Batch(indices, self._network.encode_images(resized), shown))
        return Encoded(batches, several)

    def output(self, encoded: Encoded, classes: Classes | None = None) -> Any:
        """What the method itself gives for the first of encoded pictures, a batch of one or more: its ``forward``.

        Of systems with mask proposals that is their masks, class scores and heatmaps, such as
        :class:`deop.methods.masks.SegmenterOutput`; of per-pixel systems :class:`deop.methods.base.PixelOutput`.

        Raises:
            DeopError: classes that cannot be used.
        """
        wanted = self.vocabulary(classes)
        with self._lock, self._computing():
            output = self._network.score(encoded.batches[0].encoded, list(wanted.names))
        return output if wanted.plain else merged(output, wanted.of_class)

    def _resized(self, picture: Tensor) -> Tensor:
        """A picture (3, H, W) uint8 as the network is shown it, (1, 3, h, w) in [0, 1]."""
        height, width = picture.shape[-2:]
        short, long = sorted((height, width))
        side = self.settings.inference.short_side
        # In whole steps first: as floating point numbers, a large picture would take gigabytes.
        step = max(1, short // (2 * side))
        if step > 1:
            picture = torch.from_numpy(_reduced(picture.permute(1, 2, 0).numpy(), step)).permute(2, 0, 1)
        scale = min(side / short, _LONGEST * side / long)
        size = [max(round(length * scale), min(_SMALLEST, side)) for length in (height, width)]
        pixels = picture.to(self.device)[None].float() / 255
        if list(pixels.shape[-2:]) == size:
            return pixels
        return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)

    def _segmented(self, batch: _Batch, wanted: Vocabulary) -> Iterable[Segmentation]:
        output = self._network.score(batch.encoded, list(wanted.names))
        if not wanted.plain:
            output = merged(output, wanted.of_class)
        maps = self._probabilities(output)
        height, width = size = batch.pictures[0].shape[:2]
        if height * width > MOST_LABELLED:
            shrink = (MOST_LABELLED / (height * width)) ** 0.5
            size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        labels = self._network.label_map(output, size)
        labels = labels.to(torch.uint8 if len(wanted.classes) <= 256 else torch.int32)
        if wanted.threshold is not None:
            best = maps.amax(1, keepdim=True)
            below = F.interpolate(best, size, mode="bilinear", align_corners=False)[:, 0] < wanted.threshold
            labels[below] = len(wanted.classes) - 1
            maps = torch.cat([maps, 1 - best], dim=1)
        for of_picture, probabilities, picture in zip(labels, maps, batch.pictures, strict=True):
            label_map = of_picture.cpu().numpy()
            if label_map.shape != (height, width):
                rows = (np.arange(height) * size[0] // height)[:, None]
                label_map = label_map[rows, np.arange(width) * size[1] // width]
            yield Segmentation(
                label_map, list(wanted.classes), probabilities.float().cpu().numpy(), picture, self.name
            )

    def _probabilities(self, output: Any) -> Tensor:
        """Class probabilities (B, C, h, w) at the resolution that the network has."""
        maps = output.scores if isinstance(output, PixelOutput) else output.mask_logits
        scores = self._network.combine(output, tuple(maps.shape[-2:])).float()
        if isinstance(output, PixelOutput):
            return self._network.probabilities(scores)
        return shares(scores, 1)  # sums over masks: what each class has of all classes at a pixel

    @contextmanager
    def _prompted(self, templates: str | Iterable[str] | None) -> Iterator[None]:
        """Names are put into these templates inside this context."""
        network = self._network
        if templates is None:
            yield
            return
        if not isinstance(network, TrainingFree):
            raise DeopError(f"templates={templates!r}: {self.name} was trained with prompts of its own")
        given = templates if isinstance(templates, str) else tuple(templates)
        try:
            checked = TypeAdapter(Templates).validate_python(given)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise DeopError(f"templates={templates!r}: {reason}") from None
        before, network.templates = network.templates, checked
        try:
            yield
        finally:
            network.templates = before

    def _computing(self) -> Computing:
        return Computing(self.device, self.dtype)

    def _run_once(self) -> None:
        """Encodes a picture of noise of the size that pictures have for the network."""
        side = self.settings.inference.short_side
        self._network.encode_images(torch.rand(1, 3, side, side * 4 // 3, device=self.device))

    # Sharing: save_pretrained, from_pretrained and push_to_hub are those of huggingface_hub.

    def _save_pretrained(self, save_directory: Path) -> None:
        if isinstance(self._network, GraphSegmenter):
            raise DeopError(f"{self.name} is an exported graph, which is no folder; copy its file")
        # A file of CLIP's weights is on this machine alone, unlike weights that are public or come with the package.
        clip = self.settings.sections.get("clip")
        include_clip = clip is not None and in_a_file(clip["model"], clip["pretrained"])
        if self._folder is None or include_clip:
            network = self._network if self._folder is None else load_system(self._folder)
            save_system(network, self.settings, save_directory, include_clip=include_clip)
        else:  # not from the network: for inference, batch norms are folded into its convolutions
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(self._folder / name, save_directory / name)
        provenance = self.provenance | {"sha256": file_hash(save_directory / WEIGHTS)}
        provenance.pop("files", None)  # hashes of files that this folder need not have
        write_json(save_directory / PROVENANCE, provenance)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=[CONFIG, WEIGHTS, PROVENANCE],
                )
            )
        return cls.of_folder(folder, **options)

    @classmethod
    def of_folder(cls, folder: str | Path, **options: Any) -> Self:
        """The system in a folder, as training, ``deop pack`` or :meth:`save_pretrained` wrote it.

        Raises:
            DeopError: a folder that holds no system, or weights that are damaged or cannot be had.
        """
        folder = Path(folder)
        provenance = provenance_of(folder)
        return cls(load_system(folder), read_config(folder), provenance=provenance, folder=folder, **options)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        return ModelCard(model_card(self.settings, self.provenance))


def merged(output: Any, of_class: tuple[int, ...]) -> Any:
    """An output of N names as one of C classes, each with the best of its names' scores.

    Args:
        of_class: the class of each name; every class has one.
    """
    names = [
        [name for name, owner in enumerate(of_class) if owner == index] for index in range(max(of_class) + 1)
    ]

    def best(scores: Tensor, dim: int) -> Tensor:
        columns = [torch.tensor(of_one, device=scores.device) for of_one in names]
        return torch.stack([scores.index_select(dim, of_one).amax(dim) for of_one in columns], dim)

    if isinstance(output, PixelOutput):
        return output._replace(scores=best(output.scores, 1))
    if hasattr(output, "class_logits"):  # the last column is "no object"
        logits = best(output.class_logits[..., :-1], 2)
        return output._replace(class_logits=torch.cat([logits, output.class_logits[..., -1:]], dim=-1))
    calibration = -best(-output.calibration, 0)
    return output._replace(class_scores=best(output.class_scores, 2), calibration=calibration)


def _reduced(picture: np.ndarray, step: int) -> np.ndarray:
    return np.array(Image.fromarray(np.ascontiguousarray(picture)).reduce(step))
