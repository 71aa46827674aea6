"""Tables as text: Markdown pages, and LaTeX with booktabs."""

from __future__ import annotations

import pandas as pd


def markdown_page(name: str, caption: str, cells: pd.DataFrame, notes: list[str]) -> str:
    """A heading, a table of text cells, and the notes as paragraphs."""
    body = cells.to_markdown(index=False, disable_numparse=True, stralign="left")
    return "\n\n".join([f"# {name}: {caption}", body, *notes]) + "\n"


def latex_table(name: str, caption: str, cells: pd.DataFrame, notes: list[str], columns: str) -> str:
    """A table of text cells for LaTeX with booktabs; the notes are in its caption.

    Args:
        columns: LaTeX's column format.
    """
    return cells.to_latex(
        index=False,
        escape=True,
        multicolumn_format="c",
        column_format=columns,
        caption=escape_latex(" ".join((f"{caption}.", *notes))),
        label=f"tab:{name}",
    )


def escape_latex(text: str) -> str:
    """Text with LaTeX's special characters escaped, and without Markdown's marks for emphasis and code."""
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    plain = text.replace("*", "").replace("`", "")
    return "".join(words.get(sign, f"\\{sign}" if sign in "_%{}#$&" else sign) for sign in plain)
