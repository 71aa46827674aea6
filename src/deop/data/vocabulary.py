"""Class names given on the command line."""

from __future__ import annotations

import os
from pathlib import Path

from deop.errors import DeopError

MOST = 65_536
"""Classes that a 16-bit label map can tell apart."""


def parse_names(text: str) -> list[str]:
    """Parses names separated by commas or, for ``@FILE``, one per line of a file (commas are part of names there).

    White space around names is removed, and within a name becomes one space. Empty lines of a file are skipped.

    Raises:
        DeopError: a file that cannot be read, an empty name or list, a name given twice (in any case of letters, which
            CLIP does not tell apart), or more names than a label map can hold.
    """
    if text.startswith("@"):
        source = text[1:]
        try:
            lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise DeopError(f"class names: file {source} cannot be read: {reason}") from None
        names = [name for line in lines if (name := " ".join(line.split()))]
    else:
        source = repr(text)
        if Path(text).suffix and os.path.isfile(
            text
        ):  # not Path.is_file, which raises if the text is too long
            raise DeopError(f"class names: {text} is a file; write @{text} for the names in it")
        names = [" ".join(name.split()) for name in text.split(",")]
    if not names or not all(names):
        raise DeopError(
            f"class names: {source} has an empty name or none; valid: names separated by commas, as in 'cat, dog', or "
            "@FILE with one a line"
        )
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise DeopError(f"class names: {source} has {name!r} twice; each is a class of its own")
        seen.add(name.casefold())
    if len(names) > MOST:
        raise DeopError(f"class names: {source} has {len(names)} names; a label map holds at most {MOST}")
    return names
