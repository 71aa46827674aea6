"""The picture of the workflow's rules in the documentation: ``make rule-graph`` draws docs/workflow.svg.

The rules and what they need of each other are Snakemake's (``--rulegraph``); Graphviz lays them out.
"""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

from deop.errors import DeopError
from deop.utils.files import write_text

PICTURE = Path("docs/workflow.svg")
PROFILES = ("config/tiny.yaml", "config/paper.yaml")
"""One that trains its CLIP and backbone, and one that downloads datasets, so that all rules are shown."""
GROUPS = {
    "data": ("prepare_data", "download"),
    "pre-training": ("pretrain_clip", "pretrain_backbone"),
    "training": ("learn_prompts", "train_proposals", "train_system", "build_system"),
    "measuring": ("evaluate", "measure_speed", "benchmark"),
    "results": ("table", "claims", "figure", "picture"),
}
_COLOURS = dict(zip(GROUPS, ("#dbeafe", "#ede9fe", "#ffedd5", "#dcfce7", "#f3f4f6"), strict=True))
_STYLE = (
    "rankdir=LR; bgcolor=transparent; nodesep=0.25; ranksep=0.55; "
    'node [shape=box, style="rounded,filled", fontname="sans-serif", fontsize=12, color="#6b7280", penwidth=0.8]; '
    'edge [color="#6b7280", penwidth=0.9, arrowsize=0.6];'
)
Edges = set[tuple[str, str]]


def snakemake_rules(folder: Path = Path()) -> Edges:
    """Which rule needs the output of which, ``(needed, made)``, for all that :data:`PROFILES` can make.

    Raises:
        DeopError: Snakemake fails.
    """
    found: Edges = set()
    for profile in PROFILES:
        command = ["snakemake", "--rulegraph", "dot", "--forceall", "--nolock", "--configfile", profile]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise DeopError(f"snakemake --rulegraph: {done.stderr.strip()}")
        found |= edges(done.stdout)
    return found


def edges(dot: str) -> Edges:
    """The arrows of a graph in Graphviz's language, by the names of rules; not those to ``all``."""
    names = dict(re.findall(r'(\d+)\[label = "([^"\\]+)', dot))
    arrows = re.findall(r"(\d+) -> (\d+)", dot)
    return {(names[one], names[other]) for one, other in arrows if names[other] != "all"}


def edges_of_picture(svg: str) -> Edges:
    """The arrows that a picture of :func:`draw` shows."""
    titles = re.findall(r'class="edge">\s*<title>([^<]+)</title>', svg)
    return {tuple(html.unescape(title).split("->")) for title in titles}


def draw(arrows: Edges) -> str:
    """The rules as an SVG, coloured by what they are for."""
    of_rule = {rule: group for group, rules in GROUPS.items() for rule in rules}
    nodes = [
        f'"{rule}" [label="{rule.replace("_", " ")}", fillcolor="{_COLOURS[of_rule[rule]]}"];'
        for rule in sorted({rule for arrow in arrows for rule in arrow})
    ]
    lines = [f'"{one}" -> "{other}";' for one, other in sorted(arrows)]
    dot = "\n".join(["digraph rules {", _STYLE, *nodes, *lines, "}"])
    done = subprocess.run(["dot", "-Tsvg"], input=dot, capture_output=True, text=True, check=True)
    return re.sub(r"<!--.*?-->\s*", "", done.stdout, flags=re.S)  # Graphviz's version


if __name__ == "__main__":
    write_text(PICTURE, draw(snakemake_rules()))
