"""Image towers of open_clip models, split into the steps that dense features need: embedding, blocks, pooling.

open_clip builds some towers itself and takes others from timm; :class:`Tower` is their common interface.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from functools import cached_property

import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import Attention, AttentionPoolLatent, AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from deop.errors import WeightsError
from deop.models.attention import SelfAttention, TimmAttention, TorchAttention
from deop.models.severance import Attend

EXAMPLES = (
    "ViT-B-16, ViT-L-14-336, ViT-H-14-quickgelu, ViT-B-16-SigLIP, EVA02-B-16, PE-Core-B-16, MobileCLIP-B"
)
VIT_MODULES = ("vision_transformer", "vision_transformer_hybrid", "eva", "vitamin")
"""The modules of timm whose models are ViTs of the blocks that :class:`TimmTower` knows, as open_clip uses them."""


class Tower(ABC):
    """A ViT over tokens (B, prefix+h*w, width), the class token before the patches. A view that owns no weights.

    Attributes:
        width, layers: token width and number of blocks.
        prefix: 1 with a class token, 0 without.
        patch_size: side of a patch in pixels.
        pretrain_grid: (h, w) patches of the image size it was built for.
    """

    width: int
    layers: int
    prefix: int
    patch_size: int
    pretrain_grid: tuple[int, int]

    @abstractmethod
    def embed(
        self, images: Tensor, grid: tuple[int, int], prompt: Tensor | None, *, antialias: bool = True
    ) -> Tensor:
        """Tokens that enter the first block; ``prompt`` (prefix+h*w, width) is added beside the positions.

        ``antialias`` is how positions are resized; see :func:`resize_grid`.
        """

    @abstractmethod
    def attention(self, layer: int, grid: tuple[int, int]) -> SelfAttention:
        """The self-attention of a layer, at an h x w patch grid."""

    @abstractmethod
    def block(
        self, layer: int, tokens: Tensor, attention: SelfAttention, attend: Attend, masks: Tensor | None
    ) -> Tensor:
        """One block, with ``attend`` in the place of its self-attention."""

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """The image embedding (B, D) of the last block's tokens, as the model pools them."""

    @abstractmethod
    def patches(self, tokens: Tensor) -> Tensor:
        """The last block's patch tokens, each projected to the joint space on its own: (B, h*w, D)."""


class DenseFeatures:
    """Features of one pass through a visual tower, computed when first accessed; none are L2-normalised.

    Args:
        tower: the tower.
        tokens: (B, prefix+h*w, width) of its last block.
        grid: (h, w).
    """

    def __init__(self, tower: Tower, tokens: Tensor, grid: tuple[int, int]) -> None:
        self._tower, self._tokens, self._grid = tower, tokens, grid

    @cached_property
    def pooled(self) -> Tensor:
        """(B, D) the image embedding as the model pools it (class token, average, or attention)."""
        return self._tower.pool(self._tokens)

    @cached_property
    def patches(self) -> Tensor:
        """(B, D, h, w) patch tokens, each projected to the joint space on its own, as the pooled embedding is.

        That is the last layer norm and the projection, and before it the attention pool's transformation of values
        (SigLIP; see :class:`TimmTower`).
        """
        return self._tower.patches(self._tokens).transpose(1, 2).unflatten(2, self._grid)


class OpenClipTower(Tower):
    """open_clip's own ``VisionTransformer``, with class-token or average pooling.

    Raises:
        WeightsError: another pooling (CoCa's), or open_clip's custom attention.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        if visual.attn_pool is not None or visual.pool_type == "none":
            raise WeightsError(
                "the image tower (open_clip's VisionTransformer) pools by attention with many queries, as CoCa's do; "
                f"needed: class-token or average pooling, as in {EXAMPLES}"
            )
        if not all(isinstance(block.attn, nn.MultiheadAttention) for block in visual.transformer.resblocks):
            raise WeightsError("the image tower has open_clip's custom attention, not nn.MultiheadAttention")
        self.visual = visual
        self.width, self.layers, self.prefix = visual.transformer.width, visual.transformer.layers, 1
        self.patch_size, self.pretrain_grid = visual.patch_size[0], tuple(visual.grid_size)

    def embed(
        self, images: Tensor, grid: tuple[int, int], prompt: Tensor | None, *, antialias: bool = True
    ) -> Tensor:
        visual = self.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        positions = resize_positions(visual.positional_embedding, 1, self.pretrain_grid, grid, antialias)
        if prompt is not None:
            positions = positions + prompt
        return visual.ln_pre(x + positions.to(x.dtype))

    def attention(self, layer: int, grid: tuple[int, int]) -> SelfAttention:
        return TorchAttention(self.visual.transformer.resblocks[layer].attn)

    def block(
        self, layer: int, tokens: Tensor, attention: SelfAttention, attend: Attend, masks: Tensor | None
    ) -> Tensor:
        block = self.visual.transformer.resblocks[layer]
        tokens = tokens + block.ls_1(attend(attention, block.ln_1(tokens), masks))
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def pool(self, tokens: Tensor) -> Tensor:
        # The tower's own method, since models differ in whether the last norm comes before or after pooling.
        return self.visual._pool(tokens)[0] @ self.visual.proj

    def patches(self, tokens: Tensor) -> Tensor:
        return self.visual.ln_post(tokens[:, 1:]) @ self.visual.proj


class TimmTower(Tower):
    """A ViT or EVA of timm: SigLIP's, EVA02's, PE-Core's, MobileCLIP-B's, ViTamin's.

    Pooling by attention with a learned query (SigLIP's MAP head) is a weighted mean of the tokens' values; a patch that
    is pooled alone has weight 1. So its dense feature is its value, after the head's projection and MLP. The query does
    not matter, as in MaskCLIP's use of the last layer of class-token towers.

    Raises:
        WeightsError: the trunk is no ViT of the usual pre-norm blocks, has register tokens or other positions.
    """

    def __init__(self, visual: TimmModel) -> None:
        trunk = self.trunk = visual.trunk
        reason = _unlike_a_vit(trunk)
        if reason:
            raise WeightsError(
                f"the image tower ({type(trunk).__name__} of timm) {reason}; dense features need a ViT, "
                f"as in {EXAMPLES}"
            )
        self.visual = visual
        self.width, self.layers, self.prefix = trunk.embed_dim, len(trunk.blocks), trunk.num_prefix_tokens
        self.patch_size, self.pretrain_grid = (
            trunk.patch_embed.feat_ratio(),
            tuple(trunk.patch_embed.grid_size),
        )
        trunk.patch_embed.strict_img_size = False  # sizes were checked, and positions are resized here
        # A copy, since it stores the last grid, which must not change the model.
        self._rope = copy.deepcopy(getattr(trunk, "rope", None))

    def embed(
        self, images: Tensor, grid: tuple[int, int], prompt: Tensor | None, *, antialias: bool = True
    ) -> Tensor:
        trunk = self.trunk
        x = trunk.patch_embed(images).flatten(1, -2)
        if self.prefix:
            x = torch.cat([trunk.cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        added = 0 if prompt is None else prompt
        if trunk.pos_embed is not None:
            bare = trunk.no_embed_class
            embedding, prefix = trunk.pos_embed[0], 0 if bare else self.prefix
            own = resize_positions(embedding, prefix, self.pretrain_grid, grid, antialias)
            added = added + (F.pad(own, (0, 0, self.prefix, 0)) if bare else own)
        return trunk.norm_pre(x + added.to(x.dtype) if isinstance(added, Tensor) else x)

    def attention(self, layer: int, grid: tuple[int, int]) -> SelfAttention:
        attention = self.trunk.blocks[layer].attn
        if self._rope is None:
            return TimmAttention(attention, self.prefix)
        self._rope.to(attention.proj.weight.device).update_feat_shape(grid)
        return TimmAttention(attention, self.prefix, self._rope.get_embed(grid))

    def block(
        self, layer: int, tokens: Tensor, attention: SelfAttention, attend: Attend, masks: Tensor | None
    ) -> Tensor:
        block = self.trunk.blocks[layer]
        attended = attend(attention, block.norm1(tokens), masks)
        if isinstance(block, Block):
            tokens = tokens + block.ls1(attended)
            return tokens + block.ls2(block.mlp(block.norm2(tokens)))
        tokens = tokens + (attended if block.gamma_1 is None else block.gamma_1 * attended)
        mixed = block.mlp(block.norm2(tokens))
        return tokens + (mixed if block.gamma_2 is None else block.gamma_2 * mixed)

    def pool(self, tokens: Tensor) -> Tensor:
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(tokens)))

    def patches(self, tokens: Tensor) -> Tensor:
        trunk = self.trunk
        x = trunk.norm(tokens[:, self.prefix :])
        if trunk.attn_pool is not None:
            x = trunk.attn_pool(x.flatten(0, 1)[:, None]).unflatten(0, x.shape[:2])
        return self.visual.head(trunk.head(trunk.fc_norm(x)))


def make_tower(visual: nn.Module) -> Tower:
    """The tower that open_clip built as a model's ``visual``.

    Raises:
        WeightsError: it is not a ViT with dense features.
    """
    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual)
    if isinstance(visual, TimmModel):
        return TimmTower(visual)
    raise WeightsError(
        f"the image tower ({type(visual).__name__}) is not a ViT; dense features need one, as in {EXAMPLES}"
    )


def check_image_config(vision: dict) -> None:
    """Checks the ``vision_cfg`` of a model, so that unsupported towers are refused before gigabytes are downloaded.

    Raises:
        WeightsError: the image tower is not a ViT.
    """
    name = vision.get("timm_model_name")
    if name is not None:
        family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        tower = None if family in VIT_MODULES else f"{name}, of timm's {family}"
    else:
        tower = None if isinstance(vision.get("layers", 12), int) else "ModifiedResNet"
    if tower is not None:
        raise WeightsError(
            f"the image tower ({tower}) is not a ViT; dense features need one, as in {EXAMPLES}"
        )


def resize_grid(maps: Tensor, grid: tuple[int, int], antialias: bool = True) -> Tensor:
    """Maps (C, h, w) on a patch grid -> (C, *grid), bicubic, as open_clip resizes positional embeddings.

    Without ``antialias``, as in the DeOP release, PyTorch's cubic kernel differs also where a map is enlarged.
    """
    if tuple(maps.shape[1:]) == tuple(grid):
        return maps
    # In float32: the CPU's antialiased kernel has no other type, and a position is worth its digits.
    if antialias and torch.compiler.is_exporting():  # other runtimes have no antialiased kernel
        rows, columns = (cubic_matrix(old, new).to(maps.device) for old, new in zip(maps.shape[1:], grid))
        return (rows @ maps.float() @ columns.T).to(maps.dtype)
    maps32 = maps[None].float()
    resized = F.interpolate(maps32, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    return resized[0].to(maps.dtype)


def cubic_matrix(old: int, new: int) -> Tensor:
    """The matrix (new, old) of ``F.interpolate(mode="bicubic", antialias=True)`` along one side.

    Of tensor operations alone, so that ``new`` may be a symbol of torch.export.
    """
    ratio = torch.tensor(float(old)) / new
    centres = (torch.arange(new)[:, None] + 0.5) * ratio
    distance = ((torch.arange(old) + 0.5 - centres) / ratio.clamp(min=1)).abs()
    inside = (1.5 * distance - 2.5) * distance**2 + 1
    outside = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, inside, torch.where(distance < 2, outside, torch.zeros(())))
    return weights / weights.sum(1, keepdim=True)


def resize_positions(
    positions: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int], antialias: bool
) -> Tensor:
    """Resizes positions (prefix+h*w, C) from one patch grid to another; the class token's stay the same."""
    patches = positions[prefix:].T.unflatten(1, old)
    return torch.cat([positions[:prefix], resize_grid(patches, new, antialias).flatten(1).T])


def _unlike_a_vit(trunk: nn.Module) -> str | None:
    """Why :class:`TimmTower` does not support a timm model, or None if it does."""
    if not isinstance(trunk, TimmVisionTransformer | Eva):
        return "is not a ViT"
    if trunk.num_prefix_tokens > 1:
        return "has register tokens"
    if getattr(trunk, "rope_mixed", False):
        return "has rotary positions of its own in each layer"
    for block in trunk.blocks:
        attention = block.attn
        if type(block) not in (Block, EvaBlock):
            return f"has blocks of kind {type(block).__name__}"
        if type(attention) not in (Attention, AttentionRope, EvaAttention) or attention.gate is not None:
            return f"has attention of kind {type(attention).__name__}"
    pool = trunk.attn_pool
    if pool is not None and (not isinstance(pool, AttentionPoolLatent) or pool.pos_embed is not None):
        return f"is pooled by {type(pool).__name__}"
    return None
