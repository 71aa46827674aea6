"""Prompts of a frozen CLIP (section 3.2): learned text prefixes or templates, and element-wise visual prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.errors import ClassNameError
from deop.models.clip import DenseCLIP
from deop.models.clip_towers import resize_grid
from deop.utils.progress import progress_bar

_TEXTS = 256
"""Texts in one forward pass of the text encoder, to bound memory for large vocabularies."""


class TextPrompt(nn.Module):
    """A learned prefix before every class name, shared by all classes, and the embedding of "no object".

    A prompt is ``[start] context_1 ... context_n name tokens . [end]``, where the context begins with ``n_prefix``
    random tokens and ends with those of ``words``. The prefix is learned offline, on
    crops, and then trained further end to end in Baseline+ and DeOP. Classes are names, so any vocabulary works.
    ``no_object`` (D,), not normalised, is one more classifier row of the segmentation stage.

    Args:
        n_prefix: number of prefix tokens that start from random values, 0 for none.
        text_width: width of the text encoder's tokens (``DenseCLIP.text_width``).
        embed_dim: width D of CLIP's joint space.
        init_std: standard deviation of the normal initialisation.
        words: (W, text_width) token embeddings that further prefix tokens start from, such as those of "a picture
            of". An untrained prompt then is a template familiar to CLIP.
    """

    def __init__(
        self,
        n_prefix: int,
        text_width: int,
        embed_dim: int,
        *,
        init_std: float = 0.02,
        words: Tensor | None = None,
    ) -> None:
        super().__init__()
        random = torch.randn(n_prefix, text_width) * init_std
        self.context = nn.Parameter(random if words is None else torch.cat([random, words.to(random)]))
        self.no_object = nn.Parameter(torch.randn(embed_dim) * init_std)

    @property
    def n_prefix(self) -> int:
        return self.context.shape[0]

    def forward(self, clip: DenseCLIP, names: list[str]) -> Tensor:
        """Class embeddings (T, D) of T names, L2-normalised; differentiable in ``context``.

        Raises:
            ClassNameError: a name that, with the prefix, does not fit the text encoder's context.
        """
        tokens = clip.tokenize([f"{name}." for name in names])
        eot = clip.end_of_text(tokens) + self.n_prefix
        if self.n_prefix and int(eot.max()) >= clip.context_length:
            longest = names[int(eot.argmax())]
            raise ClassNameError(
                f"class name {longest!r} with {self.n_prefix} prefix tokens does not fit the "
                f"text encoder's context of {clip.context_length} tokens"
            )
        embedded = clip.token_embeddings(tokens)
        start = embedded[:, : clip.text_start]
        rest = embedded[:, clip.text_start : clip.context_length - self.n_prefix]
        prompts = torch.cat([start, self.context.expand(len(names), -1, -1), rest], dim=1)
        parts = zip(prompts.split(_TEXTS), eot.split(_TEXTS), strict=True)
        return F.normalize(torch.cat([clip.encode_text_embeddings(*part) for part in parts]), dim=-1)


class TextTemplates(nn.Module):
    """Templates instead of a learned prefix, and the embedding of "no object", the only parameter that learns.

    ``no_object`` (D,) is the same as in :class:`TextPrompt`.

    Args:
        templates: texts with ``{}`` for the class name.
        embed_dim: width D of CLIP's joint space.
        init_std: standard deviation of the normal initialisation of "no object".
    """

    def __init__(self, templates: tuple[str, ...], embed_dim: int, *, init_std: float = 0.02) -> None:
        super().__init__()
        self.templates = templates
        self.no_object = nn.Parameter(torch.randn(embed_dim) * init_std)
        self._cache: tuple[tuple, Tensor] | None = None

    def forward(self, clip: DenseCLIP, names: list[str]) -> Tensor:
        """Class embeddings (T, D) of T names, L2-normalised; cached until the names change."""
        key = (*names, self.no_object.device)
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, template_embeddings(clip, names, self.templates))
        return self._cache[1]


def template_embeddings(clip: DenseCLIP, names: list[str], templates: tuple[str, ...]) -> Tensor:
    """Class embeddings (T, D) of T names, L2-normalised, without gradients: the mean over the templates.

    The mean is of normalised embeddings, as in CLIP's zero-shot recipe. In full precision, since it is computed once.
    """
    chunks = [names[first : first + _TEXTS] for first in range(0, len(names), _TEXTS)]
    steps = [(index, template) for index in range(len(chunks)) for template in templates]
    sums: list[Tensor | int] = [0] * len(chunks)
    # Tensors created in inference mode could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(clip.device.type, enabled=False):
        for index, template in progress_bar(steps, desc="embed templates", delay=5, leave=False):
            sums[index] = sums[index] + clip.encode_text(chunks[index], template)
        return F.normalize(torch.cat(sums), dim=-1)


class VisualPrompts(nn.Module):
    """Learned maps added element by element to the tokens that enter each of the first ``depth`` blocks.

    Layer 0 is the tower's input, where the map is added like the positional embedding; layers 1 to depth-1
    are the inputs of those blocks. All maps start at zero, so the untrained model equals plain CLIP.

    Args:
        width: width of the visual tokens (``DenseCLIP.width``).
        depth: number of maps.
        grid: side of the square grid, in patches, that the maps are stored on.
        prefix: tokens before the patches (``DenseCLIP.prefix``): 1, the class token, or 0 for towers without one.
    """

    def __init__(self, width: int, *, depth: int = 6, grid: int = 24, prefix: int = 1) -> None:
        super().__init__()
        self.width = width
        self.depth = depth
        self.prefix = prefix
        self.class_token = nn.Parameter(torch.zeros(depth, width)) if prefix else None
        self.patches = nn.Parameter(torch.zeros(depth, width, grid, grid))

    def forward(self, layer: int, grid: tuple[int, int], antialias: bool = True) -> Tensor:
        """The map of one layer, bicubically interpolated to an h x w patch ``grid``: (prefix + h*w, width)."""
        patches = resize_grid(self.patches[layer], grid, antialias).flatten(1).T
        if self.class_token is None:
            return patches
        return torch.cat([self.class_token[layer, None], patches])
