"""An extension of Griffe: docstrings have the roles of reStructuredText, which the site shows as code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """``:class:`~deop.api.result.Segmentation``` becomes ```Segmentation```."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":\w+:`(?:~[\w.]*\.)?([^`]+)`", r"`\1`", obj.docstring.value)
