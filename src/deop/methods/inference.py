"""A trained system made ready for inference: batch-norm folding, torch.compile, and other runtimes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from timm.layers import unfreeze_batch_norm_2d
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_map_only

from deop.errors import DeopError
from deop.methods.base import Segmenter
from deop.methods.masks import MaskSegmenter
from deop.methods.runtimes import GraphMethod
from deop.models.proposals import ProposalNetwork
from deop.settings.precision import Precision, Runtime

AnySegmenter = TypeVar("AnySegmenter", bound=Segmenter)
AnyProposals = TypeVar("AnyProposals", bound=ProposalNetwork)


def prepare(
    segmenter: AnySegmenter,
    device: torch.device,
    *,
    runtime: Runtime = "torch",
    precision: Precision = "fp32",
    size_divisibility: int = 1,
    upsample: Literal["masks", "scores"] = "masks",
) -> AnySegmenter:
    """The system on ``device``, in evaluation mode, with its backbone's batch norms part of the convolutions.

    It can answer, but no longer be trained or saved. ``size_divisibility`` and ``upsample`` are as
    :class:`deop.settings.stages.Evaluation` has them.

    Its two networks are computed by ``runtime``. ``compiled``: torch.compile makes them anew for the first size of
    images (a minute or so on a CPU) and for a second one; from then on for any. On a GPU they are a CUDA graph for as
    long as the size stays the same. ``onnxruntime`` and ``openvino`` (:mod:`deop.methods.runtimes`): they are made anew
    for every size, and compute in ``precision``, where PyTorch goes by the caller's autocast.

    Raises:
        DeopError: a runtime that is not installed, or does not compute on this device or in this precision.
    """
    segmenter = segmenter.eval().requires_grad_(False)
    segmenter.size_divisibility, segmenter.upsample = size_divisibility, upsample
    if isinstance(segmenter, MaskSegmenter) and isinstance(segmenter.proposals, ProposalNetwork):
        segmenter.proposals = with_folded_norms(segmenter.proposals)
    segmenter = segmenter.to(device)
    if runtime in ("onnxruntime", "openvino") and device.type != "cpu":
        raise DeopError(f"runtime {runtime} computes on the CPU, not on {device}")
    for name in segmenter.compiled_methods if runtime != "torch" else ():
        method = getattr(segmenter, name)
        replaced = (
            _compiled(method, device) if runtime == "compiled" else GraphMethod(method, runtime, precision)
        )
        setattr(segmenter, name, replaced)
    return segmenter


def _compiled(method: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    if device.type != "cuda":  # frozen weights are laid out as the CPU's matrix products like them best
        return torch.compile(method, options={"freezing": True})
    options = {"triton.cudagraphs": True, "triton.cudagraph_skip_dynamic_graphs": True}
    graph = torch.compile(method, options=options)

    def call(*values: Any, **more: Any) -> Any:
        # What a graph gives is in its own memory, which its next run, or that of another graph, may write over.
        return tree_map_only(torch.Tensor, torch.clone, graph(*values, **more))

    return call


def with_folded_norms(network: AnyProposals) -> AnyProposals:
    """A copy of a proposal network in evaluation mode that shares all weights with it but those of its backbone."""
    network = copy.copy(network)
    network._modules = dict(network._modules)
    network.backbone = folded(network.backbone)
    return network


def folded(backbone: nn.Module) -> nn.Module:
    """A copy of a convolutional backbone in evaluation mode, with each batch norm part of the convolution before it.

    What has none, or cannot be traced by torch.fx, is returned as it is.
    """
    if not any("BatchNorm" in type(module).__name__ for module in backbone.modules()):
        return backbone
    try:
        fused = fuse(unfreeze_batch_norm_2d(copy.deepcopy(backbone)).eval())
    except TraceError:
        return backbone
    return fused.requires_grad_(False).to(memory_format=torch.channels_last)
