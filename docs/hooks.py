"""Hooks of MkDocs: pages that lie outside ``docs/``, and links that leave it.

On GitHub, the documentation links to any file of the repository. The site holds the pages of ``OUTSIDE`` as well; links
to other files outside ``docs/`` become their plain text there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "config/README.md": "configuration.md",
    "profiles/README.md": "snakemake-profiles.md",
    "src/deop/data/classes/README.md": "class-lists.md",
    "README.md": "index.md",
}
"""Where the site has a page of the repository."""
_PLACES = {page: place for place, page in OUTSIDE.items() if page != "index.md"}
_CODE_OR_LINK = re.compile(
    r"^```.*?^```|(?<!!)\[(?P<text>(?:[^\]\n`]|`[^`\n]*`|\n(?!\n))*)\]\((?P<target>[^)\s]+)\)|`[^`\n]*`",
    re.M | re.S,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, place in _PLACES.items():
        files.append(File.generated(config, page, content=(ROOT / place).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = _PLACES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return relinked(markdown, place, page.file.src_uri)


def relinked(markdown: str, place: str, page: str) -> str:
    """Markdown with its links as the site needs them.

    Args:
        place: of the file that the Markdown is from, from the root of the repository.
        page: of the site's page, from ``docs/``.
    """

    def link(match: re.Match[str]) -> str:
        text, target = match["text"], match["target"]
        if target is None:  # code
            return match[0]
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match[0]
        of_repository = os.path.normpath(os.path.join(os.path.dirname(place), path))
        if of_repository in OUTSIDE:
            inside = OUTSIDE[of_repository]
            if inside == "index.md":
                anchor = hash_ = ""
        elif of_repository.startswith("docs/"):
            inside = of_repository.removeprefix("docs/")
        else:
            return text
        return f"[{text}]({os.path.relpath(inside, os.path.dirname(page) or '.')}{hash_}{anchor})"

    return _CODE_OR_LINK.sub(link, markdown)
