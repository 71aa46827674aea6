"""The tables, rows and figures that tests count jobs of.

What ``config/tables.yaml`` has besides is left out of the copies that these tests work on, so that a new row or table
changes no number in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROWS = {
    "table1": ["zegformer", "simbaseline", "deop"],
    "table2": ["simbaseline", "deop"],
    "table3": ["baseline", "baseline_plus", "baseline_plus_ps", "baseline_plus_cal", "deop"],
    "table4": ["baseline", "mps", "gps_0_05", "gps_0_1", "gps_05_1", "gps_05_05", "mps_where_gps", "gps"],
    "table5": ["baseline_plus_ps", "deop_conv3", "deop", "deop_query3", "deop_query5"],
    "table6": ["simbaseline_large", "deop_large"],
    "tableS1": [f"baseline{rest}" for rest in ("_imagenet", "_vild", "", "_text", "_visual", "_plus")],
    "tableS3": ["baseline", *(f"gps_last{layers}" for layers in range(1, 7))],
}
"""Experiments by table."""
FIGURES = (
    *("components", "severance", "severance_depth", "anchor_decoder", "cross_dataset"),
    *("speed_accuracy", "speed", "per_class_iou", "confusion"),
)
PICTURES = ("scene", "figure5")


def keep_known_results(tables_file: Path) -> None:
    """Take out of ``tables.yaml`` what is not listed here; a file without such entries stays as it is."""
    values = yaml.safe_load(tables_file.read_text())
    known = _known(values)
    if known != values:
        tables_file.write_text(yaml.safe_dump(known, sort_keys=False))


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return values | {
        "tables": {
            name: table
            | {"rows": [row for row in table["rows"] if row.get("experiment") in (None, *ROWS[name])]}
            for name, table in values["tables"].items()
            if name in ROWS
        },
        "figures": {name: figure for name, figure in values["figures"].items() if name in FIGURES},
        "pictures": {name: picture for name, picture in values["pictures"].items() if name in PICTURES},
        "claims": [
            claim
            for claim in values["claims"]
            if {claim["better"], claim["worse"]} <= set(ROWS.get(claim["table"], ()))
        ],
    }
