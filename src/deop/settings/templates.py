"""Prompt templates: a class name is put into each, and the class is the mean of what CLIP makes of them.

A setting names a set or lists templates of its own. Planners read such settings, so nothing heavy is imported here
before a set is asked for.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

_VILD = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
SETS = {"imagenet": "ImageNet templates", "vild": "ViLD templates"}
"""The named sets and what they are called.

``imagenet`` are the 80 of CLIP's release, as open_clip has them. ``vild`` are the 14 that SimBaseline's and DeOP's
releases (MendelXu/zsseg.baseline and CongHan0808/DeOP, mask_former/modeling/clip_adapter/utils.py) call so; ViLD's own
list is longer (63), and other work means that one.
"""


def templates_of(templates: str | tuple[str, ...]) -> tuple[str, ...]:
    """The templates of a named set; of a list, itself. ``{}`` is where the class name goes."""
    if not isinstance(templates, str):
        return templates
    if templates == "vild":
        return _VILD
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def describe_templates(templates: str | tuple[str, ...]) -> str:
    """What readers of a table are told: the 80 ImageNet templates, or a list as it is."""
    if isinstance(templates, str):
        return f"the {len(templates_of(templates))} {SETS[templates]}"
    quoted = ", ".join(f'"{template}"' for template in templates)
    return f"the template {quoted}" if len(templates) == 1 else f"the templates {quoted}"


def _checked(value: Any) -> Any:
    valid = f"valid: {', '.join(SETS)}, or a list of templates with {{}} for the class name"
    if isinstance(value, str):
        if value not in SETS:
            raise ValueError(f"unknown set of templates {value!r}; {valid}")
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(template, str) for template in value):
        raise ValueError(f"no templates; {valid}")
    for template in value:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the class name")
    return value


Templates = Annotated[str | tuple[str, ...], BeforeValidator(_checked)]
"""A setting: the name of a set, or templates; none at all where something else is in their place."""
