"""The gradients of one step, however its batch is divided into parts and among processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from deop.errors import NotFiniteError
from deop.utils.timing import part


def accumulate(
    module: nn.Module,
    batch,
    micro_batch: int | None,
    accelerator: Accelerator,
    denominators: Callable[[object], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Accumulates the gradients of a batch over its parts and over all processes.

    However the batch is divided, the result is that of one process with the whole batch: each loss is a mean over
    something (masks, labelled pixels), and a part is weighted by how many of these it holds. Batch norms that are not
    frozen, and dropout, still differ.

    Args:
        batch: this process's share of the batch.
        micro_batch: samples in one forward pass; None for all.
        denominators: called with a part of the batch, returns by name of a loss the number of items in the part that
            the loss is a mean over. Losses that it does not name are means over samples; None if all are.

    Returns:
        By name, this process's share of the loss; the mean over the processes is the loss of the whole batch.

    Raises:
        NotFiniteError: a loss is not finite, in one of the processes; raised in all of them.
    """
    parts = split(batch, micro_batch)
    weights = _part_weights(parts, accelerator, denominators)
    shares: dict[str, Tensor] = {}
    error: NotFiniteError | None = None
    for index, (samples, _) in enumerate(parts):
        # Processes synchronise gradients once per step, with the last part.
        last = index == len(parts) - 1
        # In its forward pass they already synchronise buffers, so none may enter it alone.
        if last and index and (error := _error_of_any(error, accelerator)) is not None:
            break
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            if error is None:
                try:
                    weighted = _weighted_losses(module, samples, weights[index], accelerator)
                except NotFiniteError as found:
                    error = found
            if last:
                error = _error_of_any(error, accelerator)
            if error is not None:
                continue
            # Again, because gradient checkpointing has to recompute with the same kernels as in the forward pass.
            with plain_attention(accelerator.device), part("backward"):
                accelerator.backward(torch.stack(list(weighted.values())).sum())
        for name, value in weighted.items():
            shares[name] = shares.get(name, 0) + value.detach()
    if error is not None:
        if isinstance(module, DistributedDataParallel):
            # Whether the next forward pass synchronises buffers is decided by the last one that ended, in each process.
            module.require_forward_param_sync = True
        raise error
    return shares


def _weighted_losses(
    module: nn.Module, samples, weights: dict[str, Tensor | float], accelerator: Accelerator
) -> dict[str, Tensor]:
    """The losses of a part, each times its weight.

    Raises:
        NotFiniteError: their sum is not finite, or ``module`` says so itself.
    """
    with accelerator.autocast(), plain_attention(accelerator.device), part("losses"):
        losses = module(samples)
    weighted = {name: value * weights.get(name, weights[""]) for name, value in losses.items()}
    if not torch.isfinite(torch.stack(list(weighted.values())).sum()):
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        raise NotFiniteError(f"loss is not finite ({values}); a lower learning rate may help")
    return weighted


def _error_of_any(error: NotFiniteError | None, accelerator: Accelerator) -> NotFiniteError | None:
    """The error of this process, or one that says that another process has one. None of them goes on alone."""
    if accelerator.num_processes == 1:
        return error
    failed = torch.tensor(float(error is not None), device=accelerator.device)
    if accelerator.reduce(failed).item() and error is None:
        return NotFiniteError("the loss of another process is not finite; a lower learning rate may help")
    return error


def _part_weights(
    parts: list[tuple[object, int]],
    accelerator: Accelerator,
    denominators: Callable[[object], dict[str, Tensor]] | None,
) -> list[dict[str, Tensor | float]]:
    """For each part of a batch, by name of a loss, the weight of the part's mean in that of the whole batch.

    Under ``""`` is the weight by samples. Gradients are averaged over processes, hence the factor of their number.
    """
    processes = accelerator.num_processes
    if len(parts) == 1 and processes == 1:
        return [{"": 1.0}]
    counts = [{"": torch.tensor(float(samples), device=accelerator.device)} for _, samples in parts]
    if denominators is not None:
        counts = [count | denominators(samples) for count, (samples, _) in zip(counts, parts, strict=True)]
    table = torch.stack([torch.stack([value.double() for value in count.values()]) for count in counts])
    whole = accelerator.reduce(table.sum(0)) if processes > 1 else table.sum(0)
    shares = (table * processes / whole.clamp(min=torch.finfo(whole.dtype).tiny)).float()
    return [dict(zip(counts[0], row.unbind(), strict=True)) for row in shares]


def split(batch, micro_batch: int | None) -> list[tuple[object, int]]:
    """Parts of at most ``micro_batch`` samples of a batch (a tensor or a dictionary of tensors), and their sizes."""
    tensors = batch if isinstance(batch, dict) else {"": batch}
    samples = min((len(value) for value in tensors.values()), default=1)
    if micro_batch is None or samples <= micro_batch:
        return [(batch, samples)]
    split = zip(*(value.split(micro_batch) for value in tensors.values()))
    named = [dict(zip(tensors, values)) for values in split]
    return [(one if isinstance(batch, dict) else one[""], len(next(iter(one.values())))) for one in named]


def plain_attention(device: torch.device) -> contextlib.AbstractContextManager:
    """On a CPU, attention as plain matrix products: for a few dozen tokens, fused attention makes a step 25% longer."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
