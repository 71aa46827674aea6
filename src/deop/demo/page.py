"""The page: what is where, and what happens on a click. Gradio draws it; :mod:`deop.demo.desk` does the work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from deop.demo import markup
from deop.demo.desk import Desk, Session
from deop.errors import DeopError

_LOG = logging.getLogger(__name__)
_INTRODUCTION = (
    "<h1>Any words, any picture</h1><p>Choose a picture or draw a scene, type what to look for, and click a region to "
    "see why it got its class. The slider severs CLIP’s patches from each other (α = 1) or lets them mix (α = 0).</p>"
)


class Panel(NamedTuple):
    """What is shown of one system."""

    picture: gr.Image
    alpha: gr.Slider
    legend: gr.HTML
    region: gr.HTML
    explain: gr.Dropdown

    @property
    def shown(self) -> tuple[gr.components.Component, ...]:
        """The parts that :func:`_view` fills."""
        return self.picture, self.legend, self.region, self.explain


def build_page(desk: Desk, *, at_once: int) -> gr.Blocks:
    """The page of a desk's systems, which computes for ``at_once`` visitors at a time; others wait in a queue."""
    # Files of visitors are deleted a quarter of an hour after they came.
    with gr.Blocks(title="deop", fill_width=True, analytics_enabled=False, delete_cache=(300, 900)) as page:
        session = gr.State(Session())
        gr.HTML(_INTRODUCTION, elem_id="introduction")
        with gr.Row(elem_id="asking", equal_height=True):
            with gr.Column(scale=2, min_width=280):
                upload = gr.File(
                    label="Picture (JPEG, PNG or WebP)", show_label=False, elem_id="upload", height=140
                )
                draw = gr.Button("Draw a scene", elem_id="draw", variant="secondary")
            with gr.Column(scale=3, min_width=280):
                names = gr.Textbox(
                    label="What to look for: names, separated by commas",
                    placeholder="bear, grass, sky",
                    lines=3,
                    max_lines=3,
                    submit_btn=False,
                    elem_id="names",
                )
                segment = gr.Button("Segment", elem_id="segment", variant="primary")
        status = gr.HTML(elem_id="status")
        with gr.Row(elem_id="panels"):
            panels = [_panel(desk, index) for index in range(len(desk.systems))]

        shown = [part for panel in panels for part in panel.shown]
        alphas = [panel.alpha for panel in panels]
        work: dict[str, Any] = {
            "concurrency_id": "work",
            "concurrency_limit": at_once,
            "api_visibility": "undocumented",
        }
        everything = [session, status, upload, names, *shown]

        def refused(before: Session, error: Exception) -> list[Any]:
            return [before, _said(error), None, gr.skip(), *(gr.skip() for _ in shown)]

        def on(step: Callable[..., Session], *, fill_names: bool = False) -> Callable[..., list[Any]]:
            """A handler of ``step``, which takes the session and more to the next session: all that then changes."""

            def handle(before: Session, *inputs: Any) -> list[Any]:
                values = inputs[: len(panels)]
                try:
                    after = step(before, *inputs[len(panels) :])
                    views = [
                        part
                        for index, alpha in enumerate(values)
                        for part in _view(desk, after, index, alpha)
                    ]
                except Exception as error:
                    return refused(before, error)
                typed = ", ".join(after.names) if fill_names else gr.skip()
                return [after, _sizes(after), None, typed, *views]

            return handle

        drawn = on(lambda before: desk.draw(before), fill_names=True)
        asked = on(lambda before, text: desk.name(before, text))

        def take(before: Session, *inputs: Any) -> list[Any]:
            *values, path, text = inputs
            try:
                after = desk.take(before, Path(path))
            except Exception as error:
                return refused(before, error)
            finally:
                Path(path).unlink(missing_ok=True)
            return asked(after, *values, text)  # the picture is kept even if the names are refused

        page.load(drawn, [session, *alphas], everything, **work)
        draw.click(drawn, [session, *alphas], everything, **work)
        upload.upload(take, [session, *alphas, upload, names], everything, **work)
        for trigger in (segment.click, names.submit):
            trigger(asked, [session, *alphas, names], everything, **work)
        for index, panel in enumerate(panels):

            def slide(now: Session, alpha: float, index: int = index) -> list[Any]:
                try:
                    return ["", *_view(desk, now, index, alpha)]
                except Exception as error:
                    return [_said(error), *(gr.skip() for _ in panels[index].shown)]

            # While it moves, the last position alone is computed.
            panel.alpha.input(
                slide,
                [session, panel.alpha],
                [status, *panel.shown],
                trigger_mode="always_last",
                show_progress="hidden",
                **work,
            )

            def click(event: gr.SelectData, now: Session, *values: float, index: int = index) -> list[Any]:
                return on(lambda before: replace(before, point=_point(desk, before, event.index)))(
                    now, *values
                )

            panel.picture.select(click, [session, *alphas], everything, show_progress="hidden", **work)

            def explain(now: Session, *inputs: Any, index: int = index) -> list[Any]:
                *values, name = inputs
                return on(lambda before: desk.point_at(before, index, values[index], name))(now, *values)

            panel.explain.input(
                explain, [session, *alphas, panel.explain], everything, show_progress="hidden", **work
            )
    page.queue(max_size=64, default_concurrency_limit=at_once)
    return page


def _panel(desk: Desk, index: int) -> Panel:
    system = desk.systems[index]
    count = len(system.layers)
    label = f"Severance α of {'the last layer' if count == 1 else f'{count} layers'}"
    # One system has its explanations beside the picture; of two, each has them below.
    group = gr.Row if len(desk.systems) == 1 else gr.Column
    with gr.Column(min_width=300, elem_classes="panel", elem_id=f"panel-{index}"):
        gr.HTML(markup.heading(system.name, system.kind))
        with group():
            with gr.Column(min_width=300):
                picture = gr.Image(
                    show_label=False,
                    interactive=False,
                    buttons=[],
                    format="webp",
                    container=False,
                    elem_id=f"picture-{index}",
                    elem_classes="picture",
                    alt_text="The picture with its classes in colour",
                )
                alpha = gr.Slider(
                    0,
                    1,
                    value=system.alpha,
                    step=0.05,
                    label=label if count else "Severance: this system has none with an α",
                    interactive=bool(count),
                    buttons=["reset"] if count else [],
                    elem_id=f"alpha-{index}",
                )
            with gr.Column(min_width=300):
                legend = gr.HTML(elem_id=f"legend-{index}")
                explain = gr.Dropdown(
                    [], label="Explain a region of", elem_id=f"explain-{index}", elem_classes="explain"
                )
                region = gr.HTML(markup.hint(), elem_id=f"region-{index}")
    return Panel(picture, alpha, legend, region, explain)


def _view(desk: Desk, session: Session, index: int, alpha: float) -> list[Any]:
    """What the parts of a panel are filled with."""
    view = desk.view(session, index, alpha)
    choice = gr.Dropdown(choices=view.found, value=view.explained)
    return [view.picture, view.legend, view.region, choice]


def _point(desk: Desk, session: Session, index: Any) -> tuple[float, float]:
    """Where the shown picture was clicked, (y, x) as fractions of its sides, from pixels (x, y)."""
    height, width = desk.shown_size(session)
    x, y = index
    return (y + 0.5) / height, (x + 0.5) / width


def _said(error: Exception) -> str:
    """What the visitor is told of an error; the operator sees those that are not about the request."""
    if isinstance(error, DeopError):
        return markup.message(str(error), refused=True)
    _LOG.error("a request failed", exc_info=error)
    return markup.message("Something went wrong here. Please try something else.", refused=True)


def _sizes(session: Session) -> str:
    count = len(session.names)
    return markup.message(f"Segmented into {count} {'class' if count == 1 else 'classes'}.")
