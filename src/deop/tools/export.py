"""Command ``export``: a system as a graph that ONNX Runtime or OpenVINO runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deop.api.load import load
from deop.data.vocabulary import parse_names
from deop.errors import DeopError
from deop.methods.graph import RUNTIMES, GraphMetadata, Quantisation, trace, write_onnx, write_openvino
from deop.methods.graph_segmenter import read_graph
from deop.tools.int8 import Int8, quantise

_AGREEMENT = 0.999
"""Pixels at least that the graph and the network must label alike."""
_TRIAL = (11, 8)
"""Sides of the image of the comparison, in multiples of what the graph takes; another size than the traced one."""
WORDS = ["dog", "cat", "car", "tree", "grass", "sky"]
"""Of the comparison, for a graph for any words."""


class Exported(NamedTuple):
    """Where a graph is, and how near it is to the network.

    Attributes:
        path: the file.
        agreement: share of the pixels of a test image that the graph in float32 and the network label alike.
        quantisation: what int8 costs, None for a graph in float32.
    """

    path: Path
    agreement: float
    quantisation: Quantisation | None


def run(
    model: str,
    output: Path | None,
    to: str,
    *,
    classes: str | None = None,
    int8: Int8 | None = None,
    options: Mapping[str, Any] | None = None,
) -> Exported:
    """Writes the graph.

    Args:
        model: what :func:`deop.load` takes.
        output: the file to write; by default the name of the system in this folder.
        to: ``onnx`` or ``openvino``.
        classes: a vocabulary to freeze, as :func:`deop.data.vocabulary.parse_names` reads it; None makes a graph whose
            class embeddings are an input, for any names.
        int8: what to calibrate and to measure a graph in int8 on; None writes it in float32.
        options: of :func:`deop.load`.

    Raises:
        DeopError: a runtime or file name that there is not, a system that cannot be exported, a graph that labels
            pixels differently, or one that int8 makes worse (:func:`deop.tools.int8.quantise`); then nothing is
            written.
    """
    if to not in RUNTIMES:
        raise DeopError(f"--to {to}: valid: {', '.join(RUNTIMES)}")
    path = output or Path(f"{model.strip('/').replace('/', '-')}{RUNTIMES[to]}")
    if path.suffix != RUNTIMES[to]:
        raise DeopError(f"--output {path}: a graph for {to} is called something{RUNTIMES[to]}")
    if int8 is not None:
        if to != "openvino":
            raise DeopError(f"--int8: graphs for {to} are in float32 alone; valid with --int8: --to openvino")
        int8.check()
    names = None if classes is None else parse_names(classes)
    segmenter = load(model, device="cpu", **(options or {}))
    program, multiple, outputs = trace(segmenter.network, names)
    metadata = GraphMetadata(
        system=str(Path(model).resolve()) if Path(model).is_dir() else model,
        config=segmenter.settings,
        names=None if names is None else tuple(names),
        multiple_of=multiple,
        outputs=outputs,
        provenance=segmenter.provenance,
    )
    write = write_onnx if to == "onnx" else write_openvino
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unchecked-", dir=path.parent) as folder:
        unchecked = Path(folder) / path.name
        write(program, unchecked, metadata)
        graph = read_graph(unchecked, torch.float32, lambda _: segmenter.network)
        words = names or WORDS
        images = torch.rand(
            1, 3, *(multiple * side for side in _TRIAL), generator=torch.Generator().manual_seed(0)
        )
        agreement = float(
            (graph.label(images, words) == segmenter.network.label(images, words)).float().mean()
        )
        if agreement < _AGREEMENT:
            raise DeopError(
                f"{model}: the graph and the network label only {agreement:.2%} of the pixels of a test image alike, "
                f"less than {_AGREEMENT:.1%}; nothing was written"
            )
        quantisation = None
        if int8 is not None:
            unchecked, quantisation = quantise(model, unchecked, segmenter.network, metadata, int8)
        for suffix in (".bin", path.suffix):  # the weights first
            if (file := unchecked.with_suffix(suffix)).exists():
                file.rename(path.with_suffix(suffix))
    return Exported(path, agreement, quantisation)
