"""A system as a graph for other runtimes: ONNX, or OpenVINO's own form.

What a graph takes and gives:

====================  ============================================================================================
``images``            (1, 3, H, W) RGB in [0, 1]; H and W are multiples of ``multiple_of`` pixels
``text``              (C, D) class embeddings, where no vocabulary is frozen into the graph
``labels``            (H, W) int32, the class of every pixel
``mask_logits``       (1, N, h, w), of systems with mask proposals
``embeddings``        (1, N, D) of the proposals
``class_logits``      (1, N, C + 1), the last column "no object"
``features``          (1, D, h, w), of systems without proposals: patch features
``scores``            (1, C, h, w), of systems without proposals: class logits
====================  ============================================================================================

Its metadata, a JSON under the key ``deop``, is a :class:`GraphMetadata`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from deop.errors import DeopError, explain
from deop.methods.base import PixelOutput
from deop.settings.base import Settings
from deop.settings.system import SystemConfig
from deop.utils.files import whole_file

KEY = "deop"
MASK_OUTPUTS = ("labels", "mask_logits", "embeddings", "class_logits")
PIXEL_OUTPUTS = ("labels", "features", "scores")
RUNTIMES = {"onnx": ".onnx", "openvino": ".xml"}
"""Forms of a graph and how their files end."""
_LARGEST = 4096
"""Pixels of a side."""
_TRACED = (7, 9)
"""Sides of the image that is traced, in multiples; unequal, and no size that a CLIP was pre-trained at."""


class Scores(Settings):
    """Of a validation set, fractions in [0, 1]; hIoU is None where a dataset has no unseen classes."""

    hIoU: float | None
    mIoU: float

    @property
    def main(self) -> tuple[str, float]:
        """Name and value of the score that counts."""
        return ("mIoU", self.mIoU) if self.hIoU is None else ("hIoU", self.hIoU)


class Quantisation(Settings):
    """How a graph came to be in int8, and what that cost.

    dataset: name of the dataset that it was calibrated and measured on.
    calibration_images: of the training split, from which the ranges of activations were taken.
    validation_images: of the validation split, which all the following is measured on.
    float32, int8: scores of the graph before and after.
    agreement: share of pixels that both label alike.
    """

    dataset: str
    calibration_images: int
    validation_images: int
    float32: Scores
    int8: Scores
    agreement: float

    def summary(self) -> str:
        """In one sentence."""
        name, before = self.float32.main
        return (
            f"int8 takes {name} on {self.dataset} from {before:.2%} to {self.int8.main[1]:.2%}, and labels "
            f"{self.agreement:.2%} of the pixels of its {self.validation_images} validation images as float32 does"
        )


class GraphMetadata(Settings):
    """What a graph says about itself.

    system: the name or folder that it was exported from; its text tower embeds names that are not frozen in.
    config: of that system.
    names: the frozen vocabulary, None if class embeddings are an input.
    multiple_of: what the sides of images are multiples of, in pixels.
    outputs: names of what it gives.
    quantisation: of a graph in int8, None for one in float32.
    """

    format: Literal[1] = 1
    system: str
    config: SystemConfig
    names: tuple[str, ...] | None
    multiple_of: int
    outputs: tuple[str, ...]
    provenance: dict[str, Any]
    quantisation: Quantisation | None = None

    @classmethod
    def read(cls, text: str | None, path: Path) -> GraphMetadata:
        """Raises DeopError where ``text`` is none of this package's."""
        if text is None:
            raise DeopError(f"{path}: a graph without metadata of deop; `deop export` makes such with it")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DeopError(explain(error, cls, f"{path}, metadata {KEY}")) from None


@runtime_checkable
class Exportable(Protocol):
    """A method that sees images before it knows the classes, and knows these as embeddings alone."""

    size_divisibility: int

    def encode_images(self, images: Tensor) -> Any: ...

    def text_features(self, names: list[str]) -> Tensor: ...

    def classify(self, encoded: Any, text: Tensor) -> Any: ...

    def combine(self, output: Any, size: tuple[int, int]) -> Tensor: ...


class Graph(nn.Module):
    """What is exported of a method.

    Args:
        text: (C, D) embeddings of a frozen vocabulary, or None.
    """

    def __init__(self, method: Exportable, text: Tensor | None) -> None:
        super().__init__()
        self.method = method
        self.register_buffer("text", text)

    def forward(self, images: Tensor, text: Tensor | None = None) -> tuple[Tensor, ...]:
        """The outputs in the order of the module's table."""
        encoded = self.method.encode_images(images)
        output = self.method.classify(encoded, self.text if text is None else text)
        labels = self.method.combine(output, tuple(images.shape[-2:])).argmax(1)[0].to(torch.int32)
        if isinstance(output, PixelOutput):
            return labels, encoded, output.scores
        return labels, output.mask_logits, encoded.embeddings, output.class_logits


def trace(method: nn.Module, names: Sequence[str] | None) -> tuple[ExportedProgram, int, tuple[str, ...]]:
    """The graph of a method in evaluation mode on the CPU, its ``multiple_of``, and the names of its outputs.

    Args:
        names: the vocabulary to freeze, None for class embeddings as an input.

    Raises:
        DeopError: a method that needs the names before it sees an image, or operations that cannot be traced.
    """
    if not isinstance(method, Exportable):
        raise DeopError(
            f"{type(method).__name__} cannot be exported: it shows CLIP other images for other names; valid: DeOP and "
            "its baselines, and systems without training"
        )
    multiple = math.lcm(method.clip.patch_size, method.size_divisibility)
    text = method.text_features(list(names or ["thing", "stuff", "else"])).float()
    shape: dict[str, Any] = {
        "images": {2: multiple * Dim("rows", min=2, max=_LARGEST // multiple)}
        | {3: multiple * Dim("columns", min=2, max=_LARGEST // multiple)}
    }
    inputs: tuple[Tensor, ...] = (torch.rand(1, 3, *(multiple * side for side in _TRACED)),)
    if names is None:
        inputs, shape["text"] = (*inputs, text), {0: Dim("classes", min=2, max=2**16)}
    graph = Graph(method, text if names else None).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(graph, inputs, dynamic_shapes=shape, strict=False)
            given = graph(*inputs)
    except Exception as error:  # torch.export has many
        raise DeopError(f"{type(method).__name__} cannot be traced: {error}") from error
    return program, multiple, PIXEL_OUTPUTS if len(given) == len(PIXEL_OUTPUTS) else MASK_OUTPUTS


def write_onnx(program: ExportedProgram, path: Path, metadata: GraphMetadata) -> None:
    """Raises DeopError where onnx and onnxscript are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise DeopError(f"ONNX needs {error.name}: pip install 'deop[onnx]'") from None
    inputs = ["images", *(["text"] if metadata.names is None else [])]
    made = torch.onnx.export(
        program, dynamo=True, input_names=inputs, output_names=list(metadata.outputs), verbose=False
    )
    made.model.metadata_props[KEY] = metadata.model_dump_json()
    with whole_file(path) as temporary:
        made.save(temporary, external_data=False)


def write_openvino(program: ExportedProgram, path: Path, metadata: GraphMetadata) -> None:
    """Writes ``path`` (.xml) and the weights beside it (.bin).

    Raises:
        DeopError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ModuleNotFoundError:
        raise DeopError("OpenVINO is needed: pip install 'deop[openvino]'") from None
    model = openvino.convert_model(program)
    inputs = ["images", *(["text"] if metadata.names is None else [])]
    for ports, names in ((model.inputs, inputs), (model.outputs, metadata.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    save_openvino(model, path, metadata)


def save_openvino(model: Any, path: Path, metadata: GraphMetadata) -> None:
    """Writes an ``openvino.Model`` as ``path`` (.xml) and the weights beside it (.bin)."""
    import openvino

    model.set_rt_info(metadata.model_dump_json(), KEY)
    with whole_file(path) as xml, whole_file(path.with_suffix(".bin")) as weights:
        made = weights.with_suffix(".xml")  # OpenVINO names the weights after it
        openvino.save_model(model, made, compress_to_fp16=False)
        made.rename(xml)
