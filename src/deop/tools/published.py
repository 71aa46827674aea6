"""The files of results that are published: ``python -m deop.tools.published`` lists them for ``make publish``."""

from __future__ import annotations

from pathlib import Path

from deop.settings.configuration import Configuration
from deop.settings.files import read_profile


def published(configuration: Configuration) -> list[str]:
    """The tables, benchmarks, figures and pictures of a configuration in the formats that are read, by path."""
    results = configuration.results
    tables = [*results.tables, *(["claims"] if results.claims else [])]
    return [
        *(f"results/{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")),
        *(f"results/{name}.{suffix}" for name in configuration.benchmarks for suffix in ("csv", "md")),
        *(f"results/figures/{name}.png" for name in (*results.figures, *results.pictures)),
    ]


if __name__ == "__main__":
    print("\n".join(published(Configuration(read_profile(Path()), Path()))))
