"""open_clip models as frozen dense encoders: patch features in one pass, class embeddings from names."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deop.errors import WeightsError
from deop.models.attention import TorchAttention
from deop.models.clip_build import build_clip_model, uses_quick_gelu
from deop.models.clip_towers import DenseFeatures, check_image_config, make_tower
from deop.models.pretrained import check_sha256, download_failed, find_clip_weights, hub_cache
from deop.models.severance import self_attention

if TYPE_CHECKING:
    from deop.models.attention import SelfAttention
    from deop.models.prompts import VisualPrompts
    from deop.models.severance import Severance

open_clip.add_model_config(Path(__file__).parent / "configs")


class DenseCLIP(nn.Module):
    """A frozen open_clip CLIP with a ViT image tower: no parameter learns and dropout is always off.

    Attributes:
        embed_dim: width D of the joint space.
        width, layers: token width and number of blocks of the visual tower.
        prefix: visual tokens before the patches: 1 with a class token, 0 without.
        patch_size: side of a patch in pixels.
        pretrain_grid: (h, w) patches of the image size the model was pre-trained at.
        mean, std: per channel, of images with values in [0, 1].
        context_length, text_width: tokens of a text, start and end included, and their width.
        quick_gelu: whether its activation is QuickGELU; None if it was not built by :func:`load_clip`.
        logit_scale: factor of cosines in the contrastive loss it was pre-trained with (100 for OpenAI's models).

    Args:
        model: an open_clip ``CLIP`` or ``CustomTextCLIP``.
        tokenizer: list of T texts -> (T, context_length) token ids.

    Raises:
        WeightsError: the image tower is not a ViT with dense features (:mod:`deop.models.clip_towers`), or the text
            tower is not open_clip's transformer, which learned prefixes need, or is not pooled at the end of the text
            or at the last token.
    """

    quick_gelu: bool | None = None

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self._tower = make_tower(model.visual)
        _check_text_tower(model)
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.width: int = self._tower.width
        self.layers: int = self._tower.layers
        self.prefix: int = self._tower.prefix
        self.patch_size: int = self._tower.patch_size
        self.pretrain_grid: tuple[int, int] = self._tower.pretrain_grid
        preprocessing = open_clip.get_model_preprocess_cfg(model)
        self.mean: tuple[float, float, float] = tuple(preprocessing["mean"])
        self.std: tuple[float, float, float] = tuple(preprocessing["std"])
        self.context_length: int = model.context_length
        self.text_width: int = self._text_tower.token_embedding.embedding_dim
        self.logit_scale: float = model.logit_scale.exp().item()
        self.eval()
        with torch.no_grad():
            nothing = torch.zeros(1, self.prefix + 1, self.width, device=model.logit_scale.device)
            self.embed_dim: int = self._tower.patches(nothing).shape[-1]

    def train(self, mode: bool = True) -> DenseCLIP:
        """Stays in evaluation mode, because the encoder is frozen also inside a model that trains."""
        return super().train(False)

    def visual(
        self,
        images: Tensor,
        *,
        severance: Severance | None = None,
        visual_prompts: VisualPrompts | None = None,
        masks: Tensor | None = None,
        antialias: bool = True,
        recompute: bool = False,
    ) -> DenseFeatures:
        """Dense features of whole images in one pass, at any size.

        Args:
            images: (B, 3, H, W), normalised with ``mean`` and ``std``; H and W multiples of the patch size.
                Positions are interpolated to the patch grid h = H / patch, w = W / patch.
            severance: which layers' self-attention is replaced, and how (section 4.1); None is plain CLIP.
            visual_prompts: learned maps added to the tokens that enter the first blocks (section 3.2).
            masks: (B, N, h, w) proposal masks in [0, 1] on the patch grid, for kinds of severance that are guided
                by masks.
            antialias: resize positions and visual prompts with antialiasing, as open_clip does, or without.
            recompute: gradient checkpointing: keep only the input of each block and recompute it in the backward pass.

        Raises:
            ValueError: an image size that is not a multiple of the patch size, a severed layer that the tower
                does not have, visual prompts of another width or more depth than the tower, or masks that the severance
                needs and that are missing or do not fit the patches.
        """
        tower = self._tower
        if visual_prompts is not None:
            self._check_prompts(visual_prompts)
        tokens, grid = self._embed_patches(images, visual_prompts, antialias)
        attentions = [None] * self.layers if severance is None else severance.attentions(self.layers)
        for layer, attend in enumerate(attentions):
            if visual_prompts is not None and 0 < layer < visual_prompts.depth:
                tokens = tokens + visual_prompts(layer, grid, antialias).to(tokens.dtype)
            block = (layer, tokens, tower.attention(layer, grid), attend or self_attention, masks)
            tokens = (
                checkpoint(
                    tower.block, *block, use_reentrant=False, preserve_rng_state=False
                )  # no dropout here
                if recompute
                else tower.block(*block)
            )
        return DenseFeatures(tower, tokens, grid)

    def patch_attention(self, images: Tensor, layer: int = -1) -> Tensor:
        """Softmax attention of one visual layer of plain CLIP: (B, heads, T, T), the class token first if any.

        T = ``prefix`` + h*w.

        Raises:
            ValueError: a layer that the tower does not have, or a wrong image size.
        """
        if not -self.layers <= layer < self.layers:
            raise ValueError(
                f"layer {layer}, but the tower has {self.layers} layers: "
                f"valid are {-self.layers} to {self.layers - 1}"
            )
        tower = self._tower
        tokens, grid = self._embed_patches(images)
        seen: list[Tensor] = []

        def attend(attention: SelfAttention, normed: Tensor, masks: Tensor | None) -> Tensor:
            query, key, _ = attention.project(normed)
            seen.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1))
            return normed

        last = layer % self.layers
        for index in range(last):
            tokens = tower.block(index, tokens, tower.attention(index, grid), self_attention, None)
        tower.block(last, tokens, tower.attention(last, grid), attend, None)
        return seen[0]

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (T, context_length) of T texts, on the model's device; texts too long are cut."""
        return self.tokenizer(texts).to(self.device)

    def end_of_text(self, tokens: Tensor) -> Tensor:
        """Index (T,) of the first token after the text's own, in token ids (T, L): the end-of-text token."""
        text = self._text_tower
        pooling = _text_setting(text, "pool_type")
        if pooling == "argmax":  # end-of-text has the highest id in CLIP's vocabulary
            return tokens.argmax(dim=-1)
        if pooling == "eos":
            return (tokens == _text_setting(text, "eos_id")).int().argmax(dim=-1)
        # Towers pooled at the last position: texts are padded, and end with an end token if the tokenizer has one.
        blank = self.tokenize([""])[0]
        end, padding = blank[self.text_start], blank[-1]
        length = (tokens != padding).flip(-1).int()
        length = torch.where(length.any(-1), tokens.shape[1] - length.argmax(-1), 0)
        last = tokens.gather(1, (length - 1).clamp(min=0)[:, None])[:, 0]
        return length - ((last == end) & (end != padding)).int()

    @cached_property
    def text_start(self) -> int:
        """Number of tokens before those of the text: the start token, which SigLIP's tokenizers do not have."""
        if _text_setting(self._text_tower, "pool_type") != "last":
            return 1
        blank, word = self.tokenizer(["", "a"])
        return int((blank == word).int().cumprod(0).sum())

    def token_embeddings(self, tokens: Tensor) -> Tensor:
        """Token ids (T, L) -> embeddings (T, L, text_width), without positions."""
        return self._text_tower.token_embedding(tokens)

    def word_embeddings(self, text: str) -> Tensor:
        """Embeddings (W, text_width) of the tokens of a text alone, without start, end and positions."""
        tokens = self.tokenize([text])
        return self.token_embeddings(tokens)[0, self.text_start : int(self.end_of_text(tokens)[0])]

    def encode_text_embeddings(self, embeddings: Tensor, eot: Tensor) -> Tensor:
        """Text embeddings (T, D), not normalised, from token embeddings; differentiable in them.

        Args:
            embeddings: (T, L, text_width) without positions, L at most ``context_length``. Towers that are not causal
                need exactly that length, since padding is attended to.
            eot: (T,) index of each end-of-text token; ignored by towers that are pooled at the last position.
        """
        text = self._text_tower
        causal = getattr(text, "attn_mask", None) is not None
        if _text_setting(text, "pool_type") == "last":
            eot = torch.full_like(eot, embeddings.shape[1] - 1)
        # In a causal tower, tokens after the last end-of-text token do not matter; class names are short.
        length = int(eot.max()) + 1 if causal else embeddings.shape[1]
        x = embeddings[:, :length] + text.positional_embedding[:length].to(embeddings.dtype)
        for block in text.transformer.resblocks:
            x = x + block.ls_1(self_attention(TorchAttention(block.attn), block.ln_1(x), causal=causal))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        x = text.ln_final(x)[torch.arange(len(eot), device=eot.device), eot]
        projection = text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def encode_text(self, names: list[str], template: str = "{}") -> Tensor:
        """Class embeddings (T, D), L2-normalised, of T names put into ``template``."""
        tokens = self.tokenize([template.replace("{}", name) for name in names])
        embeddings = self.encode_text_embeddings(self.token_embeddings(tokens), self.end_of_text(tokens))
        return F.normalize(embeddings, dim=-1)

    @property
    def device(self) -> torch.device:
        return self._text_tower.positional_embedding.device

    @property
    def _text_tower(self) -> nn.Module:
        """CustomTextCLIP keeps its text tower in ``text``; CLIP has the same attributes at top level."""
        return getattr(self.model, "text", self.model)

    def _embed_patches(
        self, images: Tensor, visual_prompts: VisualPrompts | None = None, antialias: bool = True
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, prefix+h*w, width) that enter the first block, and the grid (h, w)."""
        patch = self.patch_size
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            near = [max(1, round(side / patch)) * patch for side in (height, width)]
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size, {patch} pixels; "
                f"{near[0]}x{near[1]} would be"
            )
        grid = (height // patch, width // patch)
        prompt = None if visual_prompts is None else visual_prompts(0, grid, antialias)
        return self._tower.embed(images, grid, prompt, antialias=antialias), grid

    def _check_prompts(self, prompts: VisualPrompts) -> None:
        if prompts.width != self.width or prompts.depth > self.layers:
            raise ValueError(
                f"visual prompts of width {prompts.width} and depth {prompts.depth} do not fit "
                f"a tower of width {self.width} and {self.layers} layers"
            )
        if prompts.prefix != self.prefix:
            raise ValueError(
                f"visual prompts for {prompts.prefix} class tokens, but the tower has {self.prefix}"
            )


def load_clip(
    model: str,
    pretrained: str | None,
    *,
    quick_gelu: bool | None = None,
    weights_sha256: str | None = None,
    cache_dir: str | Path | None = None,
    prefix: str = "",
) -> DenseCLIP:
    """An open_clip model, or one of this package's own configs, as a frozen dense encoder.

    Args:
        model: name of an open_clip model config, such as ``"ViT-B-16"`` or ``"deop-mini"``.
        pretrained: an open_clip tag such as ``"openai"`` (downloaded once into ``cache_dir``; the activation
            is the one the tag was trained with); ``"bundled"`` for the weights this package ships; a path to
            ``.safetensors`` or ``.pt`` weights, OpenAI's TorchScript archives among them; or None for random weights.
            With a file, images are normalised as for the model's tags. No code in a file is run.
        quick_gelu: whether the weights were trained with QuickGELU; None infers it, if that is possible for a file
            (:func:`deop.models.clip_build.uses_quick_gelu`). ``-quickgelu`` models always have it.
        weights_sha256: expected SHA-256 of the weights file. Bundled weights are checked in any case, against
            the sum in the JSON beside them.
        cache_dir: where downloads go, open_clip's default if None.
        prefix: of the names of the CLIP's tensors, in a file that also holds others.

    Raises:
        WeightsError: unknown model or tag, towers that cannot be read densely, a weights file or tokenizer that is not
            there and cannot be downloaded, a wrong checksum, weights of another model, or a file of which it is not
            known whether it needs QuickGELU.
    """
    config = open_clip.get_model_config(model)
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=5, cutoff=0.4)
        raise WeightsError(f"unknown CLIP model {model!r}; closest: {', '.join(near) or 'none'}")
    try:
        check_image_config(config["vision_cfg"])
        if "hf_model_name" in config["text_cfg"]:
            raise WeightsError(
                f"the text tower ({config['text_cfg']['hf_model_name']}) is not open_clip's TextTransformer, "
                "into which learned prefixes can be put"
            )
        tokenizer = _tokenizer(model, config["text_cfg"], cache_dir)
        path = None if pretrained is None else find_clip_weights(model, pretrained, cache_dir)
        if path is not None and weights_sha256 is not None:
            check_sha256(path, weights_sha256)
        quick_gelu = uses_quick_gelu(model, pretrained, path, quick_gelu)
        clip = DenseCLIP(build_clip_model(model, pretrained, path, quick_gelu, prefix), tokenizer)
        clip.quick_gelu = quick_gelu
        return clip
    except WeightsError as error:
        told = str(error)
        named = told if f"CLIP model {model!r}" in told else f"CLIP model {model!r}: {told}"
        raise WeightsError(named) from error


def _tokenizer(model: str, text: dict, cache_dir: str | Path | None) -> Callable[[list[str]], Tensor]:
    try:
        return open_clip.get_tokenizer(model, cache_dir=cache_dir and str(cache_dir))
    except Exception as error:
        name = text.get("hf_tokenizer_name")
        if name is None:
            raise
        remedy = (
            f'Run \'hf download {name} --exclude "*.safetensors" --exclude "*.bin"\' on a machine that may, and copy '
            "that folder of its cache here (HF_HUB_CACHE says where it is)"
        )
        where = f"{constants.ENDPOINT}/{name}"
        raise WeightsError(
            download_failed(
                f"the tokenizer of CLIP model {model!r}", where, hub_cache(cache_dir), remedy, error
            )
        ) from error


def _text_setting(text: nn.Module, name: str) -> str | int | None:
    """A setting of the text tower; ``CLIP`` has it under a name that starts with ``text_``."""
    return getattr(text, f"text_{name}", getattr(text, name, None))


def _check_text_tower(model: nn.Module) -> None:
    text = getattr(model, "text", model)
    kind, pooling = type(text).__name__, _text_setting(text, "pool_type")
    if (text is not model and not isinstance(text, TextTransformer)) or getattr(
        text, "cls_emb", None
    ) is not None:
        raise WeightsError(
            f"the text tower ({kind}) must be open_clip's TextTransformer without a class token of its own: learned "
            "prefixes are token embeddings"
        )
    if pooling not in ("argmax", "eos", "last") or getattr(text, "use_pad_mask", False):
        raise WeightsError(
            f"the text tower ({kind}, pooling {pooling!r}) must be read at the end of the text or at the last token"
        )
    if not all(isinstance(block.attn, nn.MultiheadAttention) for block in text.transformer.resblocks):
        raise WeightsError("the text tower has open_clip's custom attention, not nn.MultiheadAttention")
