"""open_clip models as frozen dense encoders: patch features in one pass, class embeddings from names."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from deop.severance import self_attention

if TYPE_CHECKING:
    from deop.prompts import VisualPrompts
    from deop.severance import Severance

PACKAGE = Path(__file__).parent
BUNDLED = PACKAGE / "weights"

open_clip.add_model_config(PACKAGE / "model_configs")


class DenseFeatures(NamedTuple):
    """What one pass through the visual tower gives; nothing is L2-normalised.

    pooled: (B, D) the image embedding as the model pools it (class token or average).
    patches: (B, D, h, w) patch tokens after the last layer norm and the projection to the joint space.
    """

    pooled: Tensor
    patches: Tensor


class DenseCLIP(nn.Module):
    """An open_clip CLIP with a ViT image tower, used frozen: no parameter learns and dropout is never on.

    Attributes:
        embed_dim: width D of the joint space.
        width, layers: token width and number of blocks of the visual tower.
        patch_size: side of a patch in pixels.
        pretrain_grid: (h, w) patches of the image size the model was pre-trained at.
        mean, std: per channel, of images with values in [0, 1].
        context_length, text_width: tokens of a text, start and end included, and their width.
        logit_scale: factor of cosines in the contrastive loss it was pre-trained with (100 for OpenAI's models).

    Args:
        model: an open_clip ``CLIP`` or ``CustomTextCLIP``.
        tokenizer: list of T texts -> (T, context_length) token ids.

    Raises:
        ValueError: the image tower is not open_clip's ViT with class-token or average pooling, or the text
            tower is not causal with end-of-text pooling (on which learned prefixes rest).
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        _check_towers(model)
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        tower = model.visual
        self.embed_dim: int = tower.proj.shape[1]
        self.width: int = tower.transformer.width
        self.layers: int = tower.transformer.layers
        self.patch_size: int = tower.patch_size[0]
        self.pretrain_grid: tuple[int, int] = tuple(tower.grid_size)
        preprocessing = open_clip.get_model_preprocess_cfg(model)
        self.mean: tuple[float, float, float] = tuple(preprocessing["mean"])
        self.std: tuple[float, float, float] = tuple(preprocessing["std"])
        self.context_length: int = model.context_length
        self.text_width: int = self._text_tower.token_embedding.embedding_dim
        self.logit_scale: float = model.logit_scale.exp().item()
        self.eval()

    def train(self, mode: bool = True) -> DenseCLIP:
        """Keep evaluation mode whatever ``mode`` says: a frozen encoder inside a model that trains."""
        return super().train(False)

    def visual(
        self,
        images: Tensor,
        *,
        severance: Severance | None = None,
        visual_prompts: VisualPrompts | None = None,
        masks: Tensor | None = None,
    ) -> DenseFeatures:
        """Dense features of whole images in one pass, at any size.

        Args:
            images: (B, 3, H, W), normalised with ``mean`` and ``std``; H and W multiples of the patch size.
                Positions are interpolated to the patch grid h = H / patch, w = W / patch.
            severance: what replaces self-attention in which layers (section 4.1); None is plain CLIP.
            visual_prompts: learned maps added to the tokens that enter the first blocks (section 3.2).
            masks: (B, N, h, w) proposal masks in [0, 1] on the patch grid, for severance kinds that are guided
                by masks.

        Raises:
            ValueError: an image size that is not a multiple of the patch size, a severed layer that the tower
                does not have, visual prompts of another width or more depth than the tower, or masks that are
                missing or do not fit the patches where the severance needs them.
        """
        tower = self.model.visual
        if visual_prompts is not None:
            self._check_prompts(visual_prompts)
        tokens, grid = self._embed_patches(images, visual_prompts)
        blocks = tower.transformer.resblocks
        attentions = [None] * self.layers if severance is None else severance.attentions(self.layers)
        for layer, (block, attend) in enumerate(zip(blocks, attentions, strict=True)):
            if visual_prompts is not None and 0 < layer < visual_prompts.depth:
                tokens = tokens + visual_prompts(layer, grid).to(tokens.dtype)
            attend = attend or self_attention
            tokens = tokens + block.ls_1(attend(block.attn, block.ln_1(tokens), masks))
            tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        # The tower's own pooling, since models differ in whether the last norm comes before or after it.
        pooled = tower._pool(tokens)[0] @ tower.proj
        patches = tower.ln_post(tokens[:, 1:]) @ tower.proj
        return DenseFeatures(pooled, patches.transpose(1, 2).unflatten(2, grid))

    def patch_attention(self, images: Tensor, layer: int = -1) -> Tensor:
        """Softmax attention of one visual layer of plain CLIP: (B, heads, 1+h*w, 1+h*w), class token first.

        Raises:
            ValueError: a layer that the tower does not have, or a wrong image size.
        """
        if not -self.layers <= layer < self.layers:
            raise ValueError(
                f"layer {layer}, but the tower has {self.layers} layers: "
                f"valid are {-self.layers} to {self.layers - 1}"
            )
        tokens, _ = self._embed_patches(images)
        *before, block = self.model.visual.transformer.resblocks[: layer % self.layers + 1]
        for earlier in before:
            tokens = earlier(tokens)
        tokens = block.ln_1(tokens)
        return block.attn(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)[1]

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (T, context_length) of T texts, on the model's device; texts too long are cut."""
        return self.tokenizer(texts).to(self.device)

    def end_of_text(self, tokens: Tensor) -> Tensor:
        """Index (T,) of the end-of-text token in token ids (T, L): there the tower reads its embedding."""
        text = self._text_tower
        if (
            _text_setting(text, "pool_type") == "argmax"
        ):  # end-of-text has the highest id in CLIP's vocabulary
            return tokens.argmax(dim=-1)
        return (tokens == _text_setting(text, "eos_id")).int().argmax(dim=-1)

    def token_embeddings(self, tokens: Tensor) -> Tensor:
        """Token ids (T, L) -> embeddings (T, L, text_width), without positions."""
        return self._text_tower.token_embedding(tokens)

    def word_embeddings(self, text: str) -> Tensor:
        """Embeddings (W, text_width) of the tokens of a text alone, without start, end and positions."""
        tokens = self.tokenize([text])
        return self.token_embeddings(tokens)[0, 1 : int(self.end_of_text(tokens)[0])]

    def encode_text_embeddings(self, embeddings: Tensor, eot: Tensor) -> Tensor:
        """Text embeddings (T, D), not normalised, from token embeddings; differentiable in them.

        Args:
            embeddings: (T, L, text_width) without positions, L at most ``context_length``.
            eot: (T,) index of each end-of-text token.
        """
        text = self._text_tower
        # The tower is causal, so nothing after the last end-of-text token counts: class names are short.
        length = int(eot.max()) + 1
        x = embeddings[:, :length] + text.positional_embedding[:length].to(embeddings.dtype)
        for block in text.transformer.resblocks:
            x = x + block.ls_1(self_attention(block.attn, block.ln_1(x), causal=True))
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
        self, images: Tensor, visual_prompts: VisualPrompts | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, 1+h*w, width) that enter the first block, and the grid (h, w)."""
        tower, patch = self.model.visual, self.patch_size
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            near = [max(1, round(side / patch)) * patch for side in (height, width)]
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size, {patch} pixels; "
                f"{near[0]}x{near[1]} would be"
            )
        x = tower.conv1(images)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        positions = tower.positional_embedding
        of_patches = positions[1:].T.unflatten(1, self.pretrain_grid)
        positions = torch.cat([positions[:1], resize_grid(of_patches, grid).flatten(1).T])
        if visual_prompts is not None:
            positions = positions + visual_prompts(0, grid)
        return tower.ln_pre(x + positions.to(x.dtype)), grid

    def _check_prompts(self, prompts: VisualPrompts) -> None:
        if prompts.width != self.width or prompts.depth > self.layers:
            raise ValueError(
                f"visual prompts of width {prompts.width} and depth {prompts.depth} do not fit "
                f"a tower of width {self.width} and {self.layers} layers"
            )


def resize_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (C, h, w) on a patch grid -> (C, *grid), bicubic, as open_clip resizes positional embeddings."""
    if tuple(maps.shape[1:]) == tuple(grid):
        return maps
    return F.interpolate(maps[None], size=grid, mode="bicubic", align_corners=False, antialias=True)[0]


def load_clip(
    model: str,
    pretrained: str | None,
    *,
    weights_sha256: str | None = None,
    cache_dir: str | Path | None = None,
) -> DenseCLIP:
    """An open_clip model, or one of this package's own configs, as a frozen dense encoder.

    Args:
        model: name of an open_clip model config, such as ``"ViT-B-16"`` or ``"deop-mini"``.
        pretrained: an open_clip tag such as ``"openai"`` (downloaded once into ``cache_dir``; the activation
            is the one the tag was trained with); ``"bundled"`` for the weights this package ships; a path to
            ``.safetensors`` or ``.pt`` weights; or None for random weights.
        weights_sha256: expected SHA-256 of the weights file. Bundled weights are checked in any case, against
            the sum in the JSON beside them.
        cache_dir: where downloads go, open_clip's default if None.

    Raises:
        ValueError: unknown model or tag, towers that cannot be read densely, or a wrong checksum.
        FileNotFoundError: a weights file that is not there.
    """
    config = open_clip.get_model_config(model)
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=5, cutoff=0.4)
        raise ValueError(f"unknown CLIP model {model!r}; closest: {', '.join(near) or 'none'}")
    # Known from the config alone: said before gigabytes are downloaded for towers that are then refused.
    if "timm_model_name" in config["vision_cfg"] or not isinstance(config["vision_cfg"]["layers"], int):
        raise ValueError(f"the image tower of CLIP model {model!r} is not open_clip's VisionTransformer")
    if "hf_model_name" in config["text_cfg"]:
        raise ValueError(f"the text tower of CLIP model {model!r} is not open_clip's TextTransformer")

    tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
    path = None if pretrained is None else _weights_file(model, pretrained, tag, cache_dir)
    if pretrained == "bundled":
        check_sha256(path, json.loads(path.with_suffix(".json").read_text())["sha256"])
    if path is not None and weights_sha256 is not None:
        check_sha256(path, weights_sha256)
    # OpenAI's weights need QuickGELU, which open_clip puts into the tag and not into the model "ViT-B-16".
    overrides = {"quick_gelu": tag.get("quick_gelu", False)} if tag else {}
    built = open_clip.create_model(
        model,
        pretrained=None if path is None else str(path),
        force_preprocess_cfg={key: tag[key] for key in ("mean", "std") if key in tag},
        **overrides,
    )
    return DenseCLIP(built, open_clip.get_tokenizer(model))


def check_sha256(path: Path, expected: str) -> None:
    """Raise ValueError naming the file and both sums unless its SHA-256 is ``expected`` (hexadecimal)."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected.lower():
        raise ValueError(f"{path} has SHA-256 {actual}, not the expected {expected}")


def _weights_file(model: str, pretrained: str, tag: dict, cache_dir: str | Path | None) -> Path:
    if tag:
        return Path(open_clip.download_pretrained(tag, cache_dir=cache_dir and str(cache_dir)))
    if pretrained == "bundled":
        path = BUNDLED / f"{model}.safetensors"
        if not path.is_file():
            bundled = sorted(file.stem for file in BUNDLED.glob("*.safetensors"))
            raise FileNotFoundError(
                f"no weights are bundled for CLIP model {model!r} ({path}); "
                f"bundled: {', '.join(bundled) or 'none'}"
            )
        return path
    path = Path(pretrained)
    if path.is_file():
        return path
    if path.suffix in (".safetensors", ".pt"):
        raise FileNotFoundError(f"CLIP weights {path} are not there")
    tags = open_clip.list_pretrained_tags_by_model(model)
    raise ValueError(
        f"unknown weights {pretrained!r} of CLIP model {model!r}; valid: a path to .safetensors "
        f"or .pt, {', '.join(['bundled', *tags])}"
    )


def _text_setting(text: nn.Module, name: str) -> str | int | None:
    """A setting of the text tower, which CLIP itself keeps under a name that starts with ``text_``."""
    return getattr(text, f"text_{name}", getattr(text, name, None))


def _check_towers(model: nn.Module) -> None:
    tower = model.visual
    if not isinstance(tower, VisionTransformer) or tower.attn_pool is not None or tower.pool_type == "none":
        raise ValueError(
            f"the image tower ({type(tower).__name__}) must be open_clip's VisionTransformer "
            "with class-token or average pooling"
        )
    if not all(isinstance(block.attn, nn.MultiheadAttention) for block in tower.transformer.resblocks):
        raise ValueError("the image tower has open_clip's custom attention, not nn.MultiheadAttention")
    text = getattr(model, "text", model)
    causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
    if not causal or _text_setting(text, "pool_type") not in ("argmax", "eos"):
        raise ValueError(
            f"the text tower ({type(text).__name__}) must be a causal transformer that reads its "
            "embedding at the end-of-text token, on which learned prefixes rest"
        )
