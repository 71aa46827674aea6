"""Graphs of OpenVINO in int8: post-training quantisation by NNCF.

Products with the weights of the proposal network and of CLIP's blocks but the last are quantised, weights and
activations. All else stays in float32: the patch embedding, the last block, the projection to the joint space, anchors,
class embeddings, cosines and masks. Errors there reach class scores directly, and it is a small part of the work.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from deop.errors import DeopError

_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""Operations of OpenVINO that NNCF quantises if one operand is a constant."""
_BLOCK = re.compile(r"(?:transformer\.resblocks|trunk\.blocks)\.(\d+)\.")
"""How parameters of the blocks of an image tower are called by open_clip and, below it, by timm."""


def require_nncf() -> None:
    """Raises DeopError where NNCF is not installed."""
    try:
        import nncf  # noqa: F401
    except ModuleNotFoundError as error:
        raise DeopError(f"int8 needs {error.name}: pip install 'deop[int8]'") from None


def quantised(
    path: Path, method: nn.Module, images: Sequence[int], inputs_of: Callable[[int], dict[str, np.ndarray]]
) -> Any:
    """The ``openvino.Model`` in a file (.xml) in int8.

    Args:
        method: what the graph was traced from, whose weights tell its layers apart.
        images: numbers of the images from which the ranges of activations are taken.
        inputs_of: gives the inputs of the graph by name, of an image by number.

    Raises:
        DeopError: no layer of the graph has weights that are to be quantised.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    rows = _row_hashes(_quantised_weights(method))
    ignored, chosen = [], 0
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in _LAYERS:
            if _has_weights(operation, rows):
                chosen += 1
            else:
                ignored.append(operation.get_friendly_name())
    if not chosen:
        raise DeopError(f"{type(method).__name__} has no layers that can be computed in int8")
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(images, inputs_of),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=ignored),
        )


def _quantised_weights(method: Any) -> Iterator[Tensor]:
    """The weights of convolutions and linear layers that are quantised."""
    if method.proposals is not None:
        yield from (weight for weight in method.proposals.parameters() if weight.dim() > 1)
    for name, weight in method.clip.model.visual.named_parameters():
        block = _BLOCK.match(name)
        if block and int(block[1]) < method.clip.layers - 1 and weight.dim() > 1:
            yield weight


def _row_hashes(weights: Iterable[Tensor]) -> set[int]:
    """By output channels, because a severed layer uses only a part of its weights."""
    return {hash(row.tobytes()) for weight in weights for row in weight.detach().flatten(1).float().numpy()}


def _has_weights(operation: Any, rows: set[int]) -> bool:
    """Whether an operand of a layer is a constant of these rows."""
    for port in operation.inputs():
        node = port.get_source_output().get_node()
        if node.get_type_name() != "Constant":
            continue
        values = np.asarray(node.data)
        width = int(
            np.prod(values.shape[-1:] if operation.get_type_name() == "MatMul" else values.shape[-3:])
        )
        if hash(np.ascontiguousarray(values.reshape(-1, width)[-1]).tobytes()) in rows:
            return True
    return False
