"""Methods of a system computed by another runtime than PyTorch: ONNX Runtime or OpenVINO, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deop.errors import DeopError
from deop.settings.precision import Precision, Runtime

_Run = Callable[[list[np.ndarray]], list[np.ndarray]]


class GraphMethod:
    """A method of a system, of tensors alone, which a runtime computes as one graph for each shape of its inputs.

    A graph is made when a shape is first met, which takes seconds to a minute.

    Args:
        method: the bound method; its results are nested tuples and lists of tensors.
        runtime: ``onnxruntime`` or ``openvino``.
        precision: ``fp32``, or ``bf16`` on OpenVINO, where the processor has bf16 arithmetic.

    Raises:
        DeopError: a runtime that is not installed, or a precision that it does not have.
    """

    def __init__(self, method: Callable[..., Any], runtime: Runtime, precision: Precision) -> None:
        if precision not in ("fp32", "bf16") or (precision, runtime) == ("bf16", "onnxruntime"):
            raise DeopError(
                f"{runtime} does not compute in {precision} here; valid: fp32, and bf16 on openvino"
            )
        self._method, self._precision = method, precision
        self._start = {"onnxruntime": _on_onnxruntime, "openvino": _on_openvino}[runtime]
        self._graphs: dict[tuple, tuple[_Run, pytree.TreeSpec]] = {}

    def __call__(self, *values: Tensor, **options: Any) -> Any:
        shapes = tuple(tuple(value.shape) for value in values)
        key = (shapes, tuple(sorted(options.items())))
        if key not in self._graphs:
            self._graphs[key] = self._make(shapes, options)
        run, structure = self._graphs[key]
        results = run([np.ascontiguousarray(value.float().numpy()) for value in values])
        return pytree.tree_unflatten([torch.from_numpy(result) for result in results], structure)

    def _make(
        self, shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]
    ) -> tuple[_Run, pytree.TreeSpec]:
        module = _Method(self._method, options).eval()
        # What is traced here must be neither in the precision nor in the inference mode that the caller is in.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            examples = tuple(torch.rand(shape) for shape in shapes)
            structure = pytree.tree_structure(module.call(*examples))
            program = torch.export.export(module, examples, strict=False)
            return self._start(program, self._precision), structure


class _Method(nn.Module):
    """A method of a system as a module, with its results in one flat tuple."""

    def __init__(self, method: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__()
        self.owner, self.function, self.options = method.__self__, method.__func__, options

    def call(self, *values: Tensor) -> Any:
        return self.function(self.owner, *values, **self.options)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_leaves(self.call(*values)))


def _on_onnxruntime(program: ExportedProgram, _: Precision) -> _Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, by which torch writes ONNX
    except ModuleNotFoundError as error:
        raise DeopError(f"runtime onnxruntime needs {error.name}: pip install 'deop[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "method.onnx"
        torch.onnx.export(program, dynamo=True, verbose=False).save(path)
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda values: session.run(None, dict(zip(names, values, strict=True)))


def _on_openvino(program: ExportedProgram, precision: Precision) -> _Run:
    try:
        import openvino
    except ModuleNotFoundError:
        raise DeopError("runtime openvino needs OpenVINO: pip install 'deop[openvino]'") from None
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", hints)
    # Results are copied: the next run writes into the same memory.
    return lambda values: [np.array(result) for result in compiled(values).to_tuple()]
