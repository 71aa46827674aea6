"""The command ``deop demo``: its options, and what is checked before torch and Gradio are imported."""

from __future__ import annotations

import importlib
import importlib.util
import socket
from typing import Annotated

import typer

from deop.api.places import bundled_systems
from deop.demo.limits import Limits
from deop.errors import DeopError
from deop.jobs.launch import prepare_process
from deop.utils.options import CORES, Profiles, Project, Proposals, Threads

LIMITS = Limits()
_CLIP = "deop-mini/bundled"
"""What comes with the package in any case: a small CLIP, which segments without training."""


def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="a system, as --model of deop segment takes it; twice for two side by side; the system that the "
            "package brings if left out"
        ),
    ] = None,
    proposals: Proposals = None,
    short_side: Annotated[
        int | None, typer.Option(min=32, help="pixels of the shorter side of pictures as systems see them")
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen at; 0.0.0.0 lets other machines in")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen at")] = 7860,
    max_bytes: Annotated[int, typer.Option(min=1, help="bytes of a picture's file")] = LIMITS.bytes,
    max_pixels: Annotated[int, typer.Option(min=1, help="pixels of a picture")] = LIMITS.pixels,
    max_names: Annotated[int, typer.Option(min=1, help="class names at once")] = LIMITS.names,
    max_length: Annotated[int, typer.Option(min=1, help="characters of a class name")] = LIMITS.length,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, help="seconds that a request takes")
    ] = LIMITS.seconds,
    at_once: Annotated[int, typer.Option(min=1, help="requests that are computed at once")] = 2,
    seed: Annotated[
        int | None, typer.Option(help="of the scenes that are drawn; others each time if left out")
    ] = None,
    project: Project = None,
    profile: Profiles = None,
    threads: Threads = CORES,
) -> None:
    """Serve a page in the browser: segment pictures, click regions, and see what severance does.

    Only this machine can reach it, unless --host says otherwise.
    """
    models = model or default_models()
    if len(models) > 2:
        raise DeopError(f"--model is given {len(models)} times; valid: once, or twice for two side by side")
    if importlib.util.find_spec("gradio") is None:
        raise DeopError('deop demo needs Gradio, which is not installed: pip install "deop[demo]"')
    check_address(host, port)
    prepare_process(threads)
    options = {
        "project": project,
        "profiles": profile or [],
        "proposals": proposals,
        "short_side": short_side,
    }
    limits = Limits(
        bytes=max_bytes, pixels=max_pixels, names=max_names, length=max_length, seconds=max_seconds
    )
    run = importlib.import_module("deop.demo.serve").run
    run(models, limits, options, host=host, port=port, at_once=at_once, seed=seed)


def default_models() -> list[str]:
    """The system that the package brings; without one, its small CLIP."""
    return (bundled_systems() or [_CLIP])[:1]


def check_address(host: str, port: int) -> None:
    """Raises :class:`DeopError` for an address that cannot be listened at, such as a port that is taken."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise DeopError(
            f"{host}:{port} cannot be listened at ({error.strerror}); choose another with --port or --host"
        ) from None
