"""Command ``export``: a system as a graph that ONNX Runtime or OpenVINO runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deop.api.load import load
from deop.data.vocabulary import parse_names
from deop.errors import DeopError
from deop.methods.graph import RUNTIMES, GraphMetadata, trace, write_onnx, write_openvino
from deop.methods.graph_segmenter import read_graph

_AGREEMENT = 0.999
"""Pixels at least that the graph and the network must label alike."""
_TRIAL = (11, 8)
"""Sides of the image of the comparison, in multiples of what the graph takes; another size than the traced one."""
WORDS = ["dog", "cat", "car", "tree", "grass", "sky"]
"""Of the comparison, for a graph for any words."""


def run(
    model: str,
    output: Path | None,
    to: str,
    *,
    classes: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Path, float]:
    """Writes the graph; returns where it is, and the share of pixels that it and the network label alike.

    Args:
        model: what :func:`deop.load` takes.
        output: the file to write; by default the name of the system in this folder.
        to: ``onnx`` or ``openvino``.
        classes: a vocabulary to freeze, as :func:`deop.data.vocabulary.parse_names` reads it; None makes a graph whose
            class embeddings are an input, for any names.
        options: of :func:`deop.load`.

    Raises:
        DeopError: a runtime or file name that there is not, a system that cannot be exported, or a graph that labels
            pixels differently; then nothing is written.
    """
    if to not in RUNTIMES:
        raise DeopError(f"--to {to}: valid: {', '.join(RUNTIMES)}")
    path = output or Path(f"{model.strip('/').replace('/', '-')}{RUNTIMES[to]}")
    if path.suffix != RUNTIMES[to]:
        raise DeopError(f"--output {path}: a graph for {to} is called something{RUNTIMES[to]}")
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
    temporary = path.with_name(f".unchecked-{path.name}")
    write = write_onnx if to == "onnx" else write_openvino
    written = [temporary, temporary.with_suffix(".bin")] if to == "openvino" else [temporary]
    try:
        write(program, temporary, metadata)
        graph = read_graph(temporary, torch.float32, lambda _: segmenter.network)
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
        for file in reversed(written):  # the weights first
            file.rename(path.with_suffix(file.suffix))
    finally:
        for file in written:
            file.unlink(missing_ok=True)
    return path, agreement
