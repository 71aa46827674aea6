"""Starts the page: loads the systems, and serves until it is interrupted."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deop.api.load import load
from deop.demo.desk import Desk
from deop.demo.limits import Limits
from deop.demo.systems import ShownSystem
from deop.errors import DeopError


def run(
    models: Sequence[str],
    limits: Limits,
    options: dict[str, Any],
    *,
    host: str,
    port: int,
    at_once: int,
    seed: int | None = None,
) -> None:
    """Serves a page of one system, or of two side by side, until it is interrupted.

    Args:
        models: names that :func:`deop.load` takes.
        options: of :func:`deop.load`.
        at_once: requests that are computed at once; others wait.
        seed: of the scenes that are drawn.

    Raises:
        DeopError: a system that cannot be used, or an address that cannot be listened at.
    """
    systems = [ShownSystem(name, load(name, **options)) for name in models]
    with tempfile.TemporaryDirectory(prefix="deop-demo-") as folder:
        # Read when Gradio is imported. Uploads are gone when the page is.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        _serve(Desk(systems, limits, seed), host, port, at_once)


def _serve(desk: Desk, host: str, port: int, at_once: int) -> None:
    import gradio as gr

    from deop.demo.page import build_page

    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        text_size=gr.themes.sizes.text_md,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        slider_color="*primary_700",
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
    )
    try:
        page = build_page(desk, at_once=at_once)
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=desk.limits.bytes,
            state_session_capacity=200,
            css_paths=Path(__file__).with_name("page.css"),
            theme=theme,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
        )
    except OSError as error:
        raise DeopError(f"{host}:{port} cannot be listened at: {error}; choose another with --port") from None
    print(f"deop: the page is at http://{host}:{port} (Ctrl+C ends it)", flush=True)
    _wait()
    page.close(verbose=False)


def _wait() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
