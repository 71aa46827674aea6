"""Parts of a forward pass that stay in float32 under autocast."""

from __future__ import annotations

import contextlib

import torch


def in_float32(device: torch.device) -> contextlib.AbstractContextManager:
    """A context without autocast: for cosines, of which a hundredth is a whole logit. Its inputs have to be float32."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()  # nothing that would show in an exported graph
    return torch.autocast(device.type, enabled=False)
