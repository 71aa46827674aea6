"""Snakemake's report of tables and figures, made by the commands of ``make report`` with stand-ins for the stages."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from asked import Asked

ROOT = Path(__file__).parents[2]
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def recipe(target: str) -> list[list[str]]:
    """The arguments of Snakemake in the commands that make would run for ``target``."""
    make = ["make", "--dry-run", target]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    return [
        shlex.split(line.partition("/bin/snakemake")[2])
        for line in done.stdout.splitlines()
        if "/bin/snakemake" in line
    ]


def held(page: str, name: str) -> dict:
    """The value of a variable that the page's script reads."""
    script = re.search(rf'<script id="{name}">\s*var \w+ = (.*?);?\s*</script>', page, re.S)
    return json.loads(script[1])


def test_both_doors_lead_to_the_report():
    make, report = recipe("report")
    assert make == []  # everything
    assert report[report.index("--report") + 1] == "results/report.html"
    assert recipe("results/report.html") == [make, report]


@pytest.mark.slow
def test_the_report_holds_tables_figures_captions_runtimes_and_provenance(workflow):
    workflow.environment |= NO_NETWORK  # a download would fail
    for arguments in recipe("report"):
        workflow.snakemake(*arguments)
    page = (workflow.path / "results/report.html").read_text()
    # One file: nothing is fetched when it is read either.
    assert not re.search(
        r" src=|<link ", re.sub(r'<script( id="[\w-]+")?>.*?</script>', "", page, flags=re.S)
    )

    categories, results = held(page, "categories"), held(page, "results")
    assert set(categories) == {"Tables", "Figures", "Datasets"}
    layouts = yaml.safe_load((workflow.path / "config/tables.yaml").read_text())
    names = [*layouts["tables"], "claims", "speed", "scaling"]
    tables = [f"results/{name}.{kind}" for name in names for kind in ("csv", "md")]
    figures = [str(path.relative_to(workflow.path)) for path in workflow.path.glob("results/figures/*.png")]
    sheets = [str(path.relative_to(workflow.path)) for path in workflow.path.glob("data/*/*.png")]
    assert len(figures) == len(layouts["figures"]) + len(layouts["pictures"])
    assert len(sheets) == Asked.in_folder(workflow.path).jobs()["prepare_data"]
    assert sorted(results) == sorted([*tables, *figures, *sheets])
    for path, result in results.items():
        content = base64.b64decode(result["data_uri"].partition("base64,")[2])
        assert content == (workflow.path / path).read_bytes()
    pictures = [f"results/figures/{name}.png" for name in layouts["pictures"]]
    assert all("Chosen by lot." in results[path]["caption"] for path in pictures)  # what its JSON says
    assert "0123456789abcdef" in results[sheets[0]]["caption"]  # the commit
    assert "scores measured here" in results["results/table3.csv"]["caption"]

    # The first page shows every table, the paper's values in italics beside what was measured.
    front = held(page, "workflow-desc")
    assert "profile <strong>mini</strong>, seeds 0" in front and "system-message" not in page
    for name in layouts["tables"]:
        lines = (workflow.path / f"results/{name}.md").read_text().splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
        shown = front.partition(f"{name}:")[2].partition("</table>")[0]
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in shown.split("<tr")[1:]]
        text = [[re.sub(r"<em>(.*?)</em>", r"*\1*", re.sub(r"</?p>", "", c)) for c in row] for row in cells]
        assert text == [rows[0], *rows[2:]]
        assert lines[-1] in front  # who made it, in how long

    # And every figure, once, as SVG, those of a table below it.
    for path in figures:
        svg = (workflow.path / path).with_suffix(".svg").read_text()
        assert front.count(f"data:image/svg+xml,{quote(svg)}") == 1
    place = front.index('alt="components"')
    assert front.index("table3:") < place < front.index("table4:")

    ran = {record["rule"] for record in held(page, "runtimes")["data"]["values"]}
    assert {
        "prepare_data",
        "train_system",
        "build_system",
        "evaluate",
        "measure_speed",
        "table",
        "claims",
        "figure",
        "picture",
    } <= ran
