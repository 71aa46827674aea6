"""An exported graph behind the interface that all methods share, on ONNX Runtime or OpenVINO."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deop.errors import DeopError
from deop.methods.base import PixelOutput, nearest_multiple
from deop.methods.builder import Builder
from deop.methods.deop import DeOP
from deop.methods.graph import KEY, MASK_OUTPUTS, GraphMetadata
from deop.methods.masks import MaskOrPixelSegmenter, Regions, SegmenterOutput
from deop.methods.training_free import TrainingFree


class Runtime(Protocol):
    """A loaded graph."""

    def __call__(self, inputs: dict[str, np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]: ...


class OnnxRuntime:
    """A graph on ONNX Runtime, on the CPU, in float32.

    Raises:
        DeopError: ONNX Runtime is not installed, or the file is no such graph.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise DeopError(f"{path} needs ONNX Runtime: pip install 'deop[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._only_path = onnxruntime.RunOptions()
        self._only_path.only_execute_path_to_fetches = True
        try:
            self._session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each kind
            raise DeopError(f"{path} cannot be read as an ONNX graph: {error}") from None
        self.metadata = self._session.get_modelmeta().custom_metadata_map.get(KEY)

    def __call__(self, inputs: dict[str, np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]:
        # All inputs have to be given, also those that the outputs do not depend on: class embeddings.
        for port in self._session.get_inputs():
            if port.name not in inputs:
                inputs = inputs | {port.name: np.zeros((2, port.shape[1]), np.float32)}
        return self._session.run(list(outputs), inputs, self._only_path)


class OpenVino:
    """A graph on OpenVINO, on the CPU.

    Args:
        dtype: float32, or bfloat16 where the processor has it.

    Raises:
        DeopError: OpenVINO is not installed, or the file is no such graph.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        try:
            import openvino
        except ModuleNotFoundError:
            raise DeopError(f"{path} needs OpenVINO: pip install 'deop[openvino]'") from None
        self._openvino = openvino
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            self._model = openvino.Core().read_model(path)
        except RuntimeError as error:
            raise DeopError(f"{path} cannot be read as a graph of OpenVINO: {error}") from None
        has = self._model.has_rt_info(KEY)
        self.metadata = self._model.get_rt_info(KEY).astype(str) if has else None
        self._compiled: dict[tuple[str, ...], Any] = {}

    def __call__(self, inputs: dict[str, np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]:
        if outputs not in self._compiled:
            taken = [port.get_node() for port in self._model.inputs]
            part = self._openvino.Model([self._model.output(name) for name in outputs], taken)
            self._compiled[outputs] = self._openvino.Core().compile_model(part, "CPU", self._settings)
        return [np.array(value) for value in self._compiled[outputs](inputs).to_tuple()]


class GraphSegmenter(MaskOrPixelSegmenter):
    """A graph as a method. It labels; it can be neither trained nor built from settings.

    Args:
        runtime: the loaded graph.
        metadata: of the graph.
        words: loads the system that the graph was exported from, whose text tower a graph without a vocabulary of its
            own needs; called when names are first asked for.
    """

    def __init__(
        self, runtime: Runtime, metadata: GraphMetadata, words: Callable[[], TrainingFree | DeOP]
    ) -> None:
        super().__init__()
        self._runtime, self.metadata = runtime, metadata
        self._words = cache(words)
        self._masks = metadata.outputs == MASK_OUTPUTS
        self._columns = {name: column for column, name in enumerate(metadata.names or ())}
        self.proposals = None

    @classmethod
    def build(cls, builder: Builder) -> Self:
        raise DeopError("a graph is read from its file and not built from settings")

    def embed(self, names: list[str]) -> None:
        if self.metadata.names is None:
            self._words().embed(names)

    def forward(self, images: Tensor, names: list[str]) -> PixelOutput | SegmenterOutput:
        return self.score(self.encode_images(images), names)

    def encode_images(self, images: Tensor) -> list[Tensor]:
        """What the graph gives for images (B, 3, H, W) in [0, 1], resized to multiples of ``multiple_of``.

        The masks and their embeddings, or patch features; with a frozen vocabulary, class logits of all its names in
        their place.
        """
        images = self.fitted(images)
        frozen = self.metadata.names is not None
        if self._masks:
            wanted = ("mask_logits", "class_logits" if frozen else "embeddings")
        else:
            wanted = ("scores" if frozen else "features",)
        runs = [self._runtime({"images": image[None].cpu().numpy()}, wanted) for image in images]
        return [torch.from_numpy(np.concatenate(values)) for values in zip(*runs, strict=True)]

    def fitted(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) resized (bilinear) to the nearest sides that the graph takes."""
        multiple = self.metadata.multiple_of
        size = [max(2 * multiple, nearest_multiple(side, multiple)) for side in images.shape[-2:]]
        if list(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)

    def score(self, encoded: list[Tensor], names: list[str]) -> PixelOutput | SegmenterOutput:
        """As the system that was exported.

        Raises:
            DeopError: a name that is not in a frozen vocabulary.
        """
        passes = torch.ones(len(encoded[0]), dtype=torch.int64)
        nothing = encoded[0].new_zeros(len(encoded[0]), 0, 1, 1, 1)  # heatmaps are not outputs of graphs
        if self.metadata.names is None:
            regions = Regions(*encoded, nothing, passes) if self._masks else encoded[0]
            return self._words().score(regions, names)
        columns = [self._column(name) for name in names]
        if not self._masks:
            return PixelOutput(encoded[0][:, columns], passes)
        return SegmenterOutput(encoded[0], encoded[1][..., [*columns, -1]], nothing, passes)

    def _column(self, name: str) -> int:
        if name not in self._columns:
            near = difflib.get_close_matches(name, self._columns, n=3, cutoff=0.4)
            raise DeopError(
                f"{name!r} is not in the vocabulary that is frozen into this graph ({len(self._columns)} names); "
                f"nearest: {', '.join(near) or 'none'}. `deop export` without --classes makes a graph for any names"
            )
        return self._columns[name]


def read_graph(
    path: Path, dtype: torch.dtype, words: Callable[[GraphMetadata], TrainingFree | DeOP]
) -> GraphSegmenter:
    """The graph in a file (.onnx, or .xml with its .bin).

    Raises:
        DeopError: a file that is no graph of this package, a runtime that is not installed, or a precision that it does
            not have.
    """
    if path.suffix == ".xml":
        runtime: Any = OpenVino(path, dtype)
    elif dtype != torch.float32:
        raise DeopError(f"{path}: dtype {dtype} is not to be had on ONNX Runtime; valid: float32")
    else:
        runtime = OnnxRuntime(path)
    metadata = GraphMetadata.read(runtime.metadata, path)
    return GraphSegmenter(runtime, metadata, lambda: words(metadata))
