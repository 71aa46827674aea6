"""The authors' checkpoint as tests need it: its names and shapes, and what its network computes, from the raw tensors.

Written after the names and the order of operations in CongHan0808/DeOP, at any size; ``FULL`` are the true numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Sizes of the release: ResNet blocks and channels, MaskFormer, the heatmap decoder, CLIP."""

    blocks: tuple[int, ...] = (3, 4, 23, 3)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 128
    width: int = 256
    ffn: int = 2048
    layers: int = 6
    queries: int = 100
    classes: int = 156
    embed: int = 512
    anchor_ffn: int = 1024
    anchor_layers: int = 1
    prefix: int = 16
    vision: int = 768
    patch: int = 16
    vision_layers: int = 12
    grid: int = 14
    learned_grid: int = 24
    text: int = 512
    text_layers: int = 12
    context: int = 77


FULL = Sizes()


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every name in the checkpoint's state dict and its shape."""
    return dict(_shapes(sizes))


def _shapes(s: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    def batch_norm(stem: str, n: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{stem}.{what}", (n,)) for what in ("weight", "bias", "running_mean", "running_var"))

    def affine(stem: str, n: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{stem}.{what}", (n,)) for what in ("weight", "bias"))

    def linear(stem: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{stem}.weight", (out, into)
        yield f"{stem}.bias", (out,)

    def attention(stem: str, n: int, output: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{stem}.in_proj_weight", (3 * n, n)
        yield f"{stem}.in_proj_bias", (3 * n,)
        if output:
            yield from linear(f"{stem}.out_proj", n, n)

    def decoder_layer(stem: str, cross: str, n: int, ffn: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from attention(f"{stem}.self_attn", n)
        yield from attention(f"{stem}.{cross}", n)
        yield from linear(f"{stem}.linear1", ffn, n)
        yield from linear(f"{stem}.linear2", n, ffn)
        for number in (1, 2, 3):
            yield from affine(f"{stem}.norm{number}", n)

    def clip_block(stem: str, n: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from attention(f"{stem}.attn", n)
        yield from affine(f"{stem}.ln_1", n)
        yield from linear(f"{stem}.mlp.c_fc", 4 * n, n)
        yield from linear(f"{stem}.mlp.c_proj", n, 4 * n)
        yield from affine(f"{stem}.ln_2", n)

    half = s.stem // 2
    for number, (into, out) in enumerate(((3, half), (half, half), (half, s.stem)), 1):
        yield f"backbone.stem.conv{number}.weight", (out, into, 3, 3)
        yield from batch_norm(f"backbone.stem.conv{number}.norm", out)
    into = s.stem
    for stage, (blocks, mid) in enumerate(zip(s.blocks, s.channels, strict=True), 2):
        for block in range(blocks):
            stem = f"backbone.res{stage}.{block}"
            convs = [("conv1", mid, into, 1), ("conv2", mid, mid, 3), ("conv3", 4 * mid, mid, 1)]
            for name, out, of, kernel in convs + [("shortcut", 4 * mid, into, 1)] * (block == 0):
                yield f"{stem}.{name}.weight", (out, of, kernel, kernel)
                yield from batch_norm(f"{stem}.{name}.norm", out)
            into = 4 * mid
    pixel, predictor, w = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor", s.width
    for level, mid in enumerate(s.channels[:3], 1):
        yield f"{pixel}.adapter_{level}.weight", (w, 4 * mid, 1, 1)
        yield from affine(f"{pixel}.adapter_{level}.norm", w)
        yield f"{pixel}.layer_{level}.weight", (w, w, 3, 3)
        yield from affine(f"{pixel}.layer_{level}.norm", w)
    yield f"{pixel}.layer_4.weight", (w, into, 3, 3)
    yield from affine(f"{pixel}.layer_4.norm", w)
    yield f"{pixel}.mask_features.weight", (w, w, 3, 3)
    yield f"{pixel}.mask_features.bias", (w,)
    for layer in range(s.layers):
        yield from decoder_layer(
            f"{predictor}.transformer.decoder.layers.{layer}", "multihead_attn", w, s.ffn
        )
    yield from affine(f"{predictor}.transformer.decoder.norm", w)
    yield f"{predictor}.query_embed.weight", (s.queries, w)
    yield f"{predictor}.input_proj.weight", (w, into, 1, 1)
    yield f"{predictor}.input_proj.bias", (w,)
    for number in range(3):
        yield from linear(f"{predictor}.mask_embed.layers.{number}", w, w)
    yield from linear(f"{predictor}.class_embed.layers.0", 1024, w)
    yield from linear(f"{predictor}.class_embed.layers.1", s.embed, 1024)
    yield "criterion.empty_weight", (s.classes + 1,)

    adapter, clip, visual = "clip_adapter", "clip_adapter.clip_model", "clip_adapter.clip_model.visual"
    yield f"{adapter}.non_object_embedding", (1, s.embed)
    yield f"{clip}.positional_embedding", (s.context, s.text)
    yield f"{clip}.text_projection", (s.text, s.embed)
    yield f"{clip}.logit_scale", ()
    yield f"{visual}.class_embedding", (s.vision,)
    yield f"{visual}.positional_embedding", (1 + s.grid**2, s.vision)
    yield f"{visual}.learned_position", (1 + s.learned_grid**2, s.vision)
    yield f"{visual}.proj", (s.vision, s.embed)
    yield f"{visual}.conv1.weight", (s.vision, 3, s.patch, s.patch)
    yield from affine(f"{visual}.ln_pre", s.vision)
    yield from affine(f"{visual}.ln_post", s.vision)
    for layer in range(s.vision_layers):
        yield from clip_block(f"{visual}.transformer.resblocks.{layer}", s.vision)
        if 1 <= layer <= 5:
            yield (
                f"{visual}.transformer.resblocks.{layer}.learned_position",
                (1 + s.learned_grid**2, s.vision),
            )
    for layer in range(s.text_layers):
        yield from clip_block(f"{clip}.transformer.resblocks.{layer}", s.text)
    yield f"{clip}.token_embedding.weight", (49408, s.text)
    yield from affine(f"{clip}.ln_final", s.text)
    yield f"{adapter}.prompt_learner.prefix_prompt", (s.prefix, s.text)
    for name in ("start", "dot", "end", "pad"):
        yield f"{adapter}.prompt_learner.{name}_signal", (1, s.text)
    for layer in range(s.anchor_layers):
        yield from decoder_layer(f"decoder.layers.{layer}", "multihead_attn_my", s.embed, s.anchor_ffn)
    yield from attention("decoder.outlayer.self_attn", s.embed)
    yield from attention("decoder.outlayer.multihead_attn_my", s.embed, output=False)
    yield from affine("decoder.outlayer.norm1", s.embed)
    yield from affine("decoder.norm", s.embed)
    yield "query_embedding.weight", (s.queries, s.embed)


def random_state(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """The checkpoint's state dict, filled with random numbers that keep activations moderate."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(sizes).items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            value = 1 + 0.1 * value.clamp(-3, 3)
        elif len(shape) > 1 and "embed" not in name and "position" not in name:
            value = value / value[0].numel() ** 0.5
        elif len(shape) <= 1:
            value = 0.1 * value
        state[name] = value
    return state


@dataclass(frozen=True)
class Release:
    """The released network, computed from the tensors of its checkpoint, one image at a time, in float64."""

    state: dict[str, Tensor]
    sizes: Sizes

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name].double()

    def under(self, stem: str) -> Release:
        stem += "."
        inside = {key.removeprefix(stem): value for key, value in self.state.items() if key.startswith(stem)}
        return Release(inside, self.sizes)

    def convolution(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        """detectron2's Conv2d with frozen batch norm inside."""
        weight = self[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
        norm = self.under(f"{name}.norm")
        scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        return x * scale[:, None, None] + (norm["bias"] - norm["running_mean"] * scale)[:, None, None]

    def backbone(self, x: Tensor) -> list[Tensor]:
        """res2 to res5: strides in the 3x3 convolutions, dilations 1, 2 and 4 in the last stage."""
        stem = self.under("backbone.stem")
        for number, stride in ((1, 2), (2, 1), (3, 1)):
            x = stem.convolution(x, f"conv{number}", stride).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for stage, blocks in enumerate(self.sizes.blocks, 2):
            for number in range(blocks):
                block = self.under(f"backbone.res{stage}.{number}")
                stride = 2 if number == 0 and stage > 2 else 1
                y = block.convolution(x, "conv1").relu()
                y = block.convolution(y, "conv2", stride, (1, 2, 4)[number] if stage == 5 else 1).relu()
                y = block.convolution(y, "conv3")
                x = (y + (block.convolution(x, "shortcut", stride) if number == 0 else x)).relu()
            features.append(x)
        return features

    def masks(self, x: Tensor) -> list[Tensor]:
        """Mask logits (1, N, h, w) of every decoder layer."""
        embeddings, pixels = self.decoded(x)
        return [torch.einsum("qc,bchw->bqhw", e, pixels) for e in embeddings]

    def decoded(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Mask embeddings (N, C) of every decoder layer, and the pixels' (1, C, h, w)."""
        features = self.backbone(x)
        pixel, predictor = self.under("sem_seg_head.pixel_decoder"), self.under("sem_seg_head.predictor")

        def normed(y: Tensor, name: str) -> Tensor:
            weight = pixel[f"{name}.weight"]
            y = F.conv2d(y, weight, padding=weight.shape[-1] // 2)
            return F.group_norm(y, 32, pixel[f"{name}.norm.weight"], pixel[f"{name}.norm.bias"])

        y = normed(features[3], "layer_4").relu()
        for level in (3, 2, 1):
            lateral = normed(features[level - 1], f"adapter_{level}")
            y = lateral + F.interpolate(y, lateral.shape[-2:], mode="nearest")
            y = normed(y, f"layer_{level}").relu()
        y = F.conv2d(y, pixel["mask_features.weight"], pixel["mask_features.bias"], padding=1)
        memory = F.conv2d(features[3], predictor["input_proj.weight"], predictor["input_proj.bias"])
        positions, memory = sine_positions(memory), memory[0].flatten(1).T
        queries = predictor["query_embed.weight"]
        state, outputs = torch.zeros_like(queries), []
        for layer in range(self.sizes.layers):
            at = predictor.under(f"transformer.decoder.layers.{layer}")
            state = at.decoder_layer(state, queries, memory, positions, "multihead_attn")
            e = predictor.norm(state, "transformer.decoder.norm")
            for number in range(3):
                e = e if number == 0 else e.relu()
                e = predictor.linear(e, f"mask_embed.layers.{number}")
            outputs.append(e)
        return outputs, y

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"])

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, name: str, heads: int, causal: bool = False
    ) -> Tensor:
        """torch's own multi-head attention with the release's tensors, (T, C) each."""
        module = nn.MultiheadAttention(query.shape[-1], heads, dtype=torch.float64)
        module.load_state_dict({key: value.double() for key, value in self.under(name).state.items()})
        mask = torch.full((len(query), len(query)), -torch.inf).triu(1).double() if causal else None
        return module(query, key, value, need_weights=False, attn_mask=mask)[0]

    def decoder_layer(
        self, state: Tensor, queries: Tensor, memory: Tensor, positions: Tensor, cross: str
    ) -> Tensor:
        located = state + queries
        state = self.norm(state + self.attention(located, located, state, "self_attn", 8), "norm1")
        attended = self.attention(state + queries, memory + positions, memory, cross, 8)
        state = self.norm(state + attended, "norm2")
        return self.norm(state + self.linear(self.linear(state, "linear1").relu(), "linear2"), "norm3")

    def clip_block(
        self, x: Tensor, heads: int, factors: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """A block of CLIP with QuickGELU; with ``factors`` (T,) its values are multiplied, not mixed."""
        normed = self.norm(x, "ln_1")
        if factors is None:
            attended = self.attention(normed, normed, normed, "attn", heads, causal)
        else:
            value = (normed @ self["attn.in_proj_weight"].T + self["attn.in_proj_bias"])[:, 2 * x.shape[-1] :]
            attended = self.linear(value * factors[:, None], "attn.out_proj")
        x = x + attended
        hidden = self.linear(self.norm(x, "ln_2"), "mlp.c_fc")
        return x + self.linear(hidden * torch.sigmoid(1.702 * hidden), "mlp.c_proj")

    def dense_clip(self, x: Tensor, mask_logits: Tensor, heads: int) -> Tensor:
        """Patch features (h, w, D) in the joint space, not normalised."""
        visual = self.under("clip_adapter.clip_model.visual")
        x = F.conv2d(x, visual["conv1.weight"], stride=self.sizes.patch)[0]
        grid = x.shape[1:]

        def resized(positions: Tensor) -> Tensor:
            side = round((len(positions) - 1) ** 0.5)
            maps = positions[1:].T.unflatten(1, (side, side))[None]
            if (side, side) != tuple(grid):
                maps = F.interpolate(maps, tuple(grid), mode="bicubic")
            return torch.cat([positions[:1], maps[0].flatten(1).T])

        x = torch.cat([visual["class_embedding"][None], x.flatten(1).T])
        x = x + resized(visual["positional_embedding"]) + resized(visual["learned_position"])
        x = visual.norm(x, "ln_pre")
        small = F.interpolate(mask_logits, [side // 4 for side in mask_logits.shape[-2:]], mode="bilinear")
        factors = small.sigmoid()[0].flatten(1).sum(0)
        factors = torch.cat([factors.new_full((1,), self.sizes.queries), factors])
        for layer in range(self.sizes.vision_layers):
            block = visual.under(f"transformer.resblocks.{layer}")
            if "learned_position" in block.state:
                x = x + resized(block["learned_position"])
            x = block.clip_block(x, heads, factors if layer == self.sizes.vision_layers - 1 else None)
        return (visual.norm(x[1:], "ln_post") @ visual["proj"]).unflatten(0, grid)

    def pooled(self, features: Tensor, mask_logits: Tensor) -> Tensor:
        """Embeddings (N, D) of unit length, from unit patch features (h, w, D)."""
        h, w, channels = features.shape
        masks = F.interpolate(mask_logits.sigmoid(), (h, w), mode="bilinear")[0].flatten(1)
        memory, positions = features.flatten(0, 1), sine_positions(features.permute(2, 0, 1)[None])
        queries = self["query_embedding.weight"]
        state = torch.zeros_like(queries)
        for layer in range(self.sizes.anchor_layers):
            at = self.under(f"decoder.layers.{layer}")
            state = at.decoder_layer(state, queries, memory, positions, "multihead_attn_my")
        out = self.under("decoder.outlayer")
        located = state + queries
        state = out.norm(state + out.attention(located, located, state, "self_attn", 8), "norm1")
        weight, bias = out["multihead_attn_my.in_proj_weight"], out["multihead_attn_my.in_proj_bias"]
        query = (state + queries) @ weight[:channels].T + bias[:channels]
        key = (memory + positions) @ weight[channels : 2 * channels].T + bias[channels : 2 * channels]
        heads, each = [], channels // 8
        for head in range(8):
            part = slice(head * each, (head + 1) * each)
            heatmap = (query[:, part] @ key[:, part].T / each**0.5).softmax(-1) * masks
            heads.append(heatmap @ memory[:, part])
        return F.normalize(torch.cat(heads, dim=-1), dim=-1)

    def classifier(self, names: list[list[int]], dot_and_end: list[int], heads: int) -> Tensor:
        """Unit text features of names (token ids) behind the learned prefix, and of "no object": (C + 1, D)."""
        clip = self.under("clip_adapter.clip_model")
        table, rows = clip["token_embedding.weight"], []
        for name in names:
            x = torch.cat(
                [
                    table[49406:49407],
                    self["clip_adapter.prompt_learner.prefix_prompt"],
                    table[[*name, *dot_and_end]],
                ]
            )
            x = x + clip["positional_embedding"][: len(x)]
            for layer in range(self.sizes.text_layers):
                x = clip.under(f"transformer.resblocks.{layer}").clip_block(x, heads, causal=True)
            rows.append(clip.norm(x[-1], "ln_final") @ clip["text_projection"])
        return F.normalize(torch.stack([*rows, self["clip_adapter.non_object_embedding"][0]]), dim=-1)


def sine_positions(x: Tensor) -> Tensor:
    """Sine and cosine of rows and columns, from 1 to their number over 2 pi: (h*w, C) for x (1, C, h, w)."""
    _, channels, h, w = x.shape
    half = channels // 2
    rates = 10000.0 ** (2 * (torch.arange(half, dtype=torch.float64) // 2) / half)
    columns = []
    for length in (h, w):
        angle = (
            torch.arange(1, length + 1, dtype=torch.float64)[:, None] / (length + 1e-6) * 2 * torch.pi / rates
        )
        columns.append(torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1))
    rows, cols = columns[0][:, None].expand(h, w, half), columns[1][None].expand(h, w, half)
    return torch.cat([rows, cols], dim=-1).flatten(0, 1)
