"""The page that lists all settings, made from their models: ``make schemas`` writes it beside the JSON Schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deop.settings.base import MOST
from deop.settings.benchmarks import BenchmarkClip, ScalingBenchmark, SpeedBenchmark
from deop.settings.configuration import SECTIONS
from deop.settings.files import ClipSection, DataSection, MainFile, Resources
from deop.settings.methods import METHODS, DeOPSettings
from deop.settings.pretraining import PretrainBackbone, PretrainClip
from deop.settings.tables import OF_PROFILE, Claim
from deop.tools.schemas import BUILT_IN, DATASETS
from deop.utils.files import write_text

PAGE = Path("docs/settings.md")
Schema = dict[str, Any]

_MAPPING = "a mapping"

_HEAD = """<!-- Made from the settings models by `make schemas`; do not edit. -->

# All settings

Every key of `config/config.yaml`, profiles, `config/experiments.yaml` and `config/tables.yaml`, with what is valid and
the default of the code. The shipped profiles set many of them otherwise. [Configuration](../config/README.md) explains
how the files fit together. An unknown key, or a value that is not valid, is an error that names it, before any job
starts.

*needed* marks keys without a default, where `config/config.yaml` has none either. In sections of stages and methods,
`per_dataset: {NAME: {...}}` changes any key for one dataset. An experiment has the keys of its method (`network` for
DeOP), over what the profile has for it.
"""
_NAMED = {
    "data": DataSection,
    "clip": ClipSection,
    "pretrain_clip": PretrainClip,
    "pretrain_backbone": PretrainBackbone,
    "network": DeOPSettings,
    **SECTIONS,
    "resources": Resources,
}
_GROUPS: dict[str, dict[str, type[BaseModel]]] = {
    "The file": {"config.yaml and profiles": MainFile},
    "Sections": _NAMED,
    "Datasets, by kind": {f"datasets, kind {kind}": model for kind, model in DATASETS.items()},
    "Methods": {
        f"methods.{name}": model
        for name, model in (METHODS | BUILT_IN).items()
        if model is not DeOPSettings and model.__module__.startswith("deop.")
    },
    "Tables, figures, pictures, claims": {
        **{f"{kind}.NAME": model for kind, model in OF_PROFILE.items()},
        "claims": Claim,
    },
    "Benchmarks": {
        "benchmark.clips.NAME": BenchmarkClip,
        "benchmark.speed": SpeedBenchmark,
        "benchmark.scaling": ScalingBenchmark,
    },
}


def page() -> str:
    """The page in Markdown: a table of keys for each section, and for each group of keys within one."""
    models = {model.__name__: model for group in _GROUPS.values() for model in group.values()}
    _, whole = models_json_schema([(model, "validation") for model in models.values()])
    defs: dict[str, Schema] = whole["$defs"]
    places = {model.__name__: name for group in _GROUPS.values() for name, model in group.items()}
    within = {name: name for name in defs if name not in places and "properties" in defs[name]}
    parts = [_HEAD]
    for title, group in _GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [_section(name, defs[model.__name__], places | within) for name, model in group.items()]
    parts.append("## Groups of keys within these\n")
    parts += [_section(name, defs[name], places | within) for name in sorted(within)]
    return "\n".join(parts)


def write() -> None:
    """Writes the page to :data:`PAGE`."""
    write_text(PAGE, page())


def _section(name: str, schema: Schema, places: dict[str, str]) -> str:
    about, of_keys = _described(schema.get("description", ""), schema["properties"])
    lines = [f"### {name}\n"]
    if about:
        lines.append(f"{about}\n")
    lines += ["| key | valid | default |", "|---|---|---|"]
    for key, value in schema["properties"].items():
        meaning = f"<br>{of_keys[key]}" if key in of_keys else ""
        default = "*needed*" if key in schema.get("required", ()) else _default(value)
        valid = _valid(value, places)
        if (
            valid == _MAPPING and key in _NAMED
        ):  # validated when it is complete: its model is that of the section
            valid = f"[{key}](#{key})"
        lines.append(f"| `{key}`{meaning} | {valid} | {default} |")
    return "\n".join(lines) + "\n"


def _described(docstring: str, keys: Iterable[str]) -> tuple[str, dict[str, str]]:
    """A model's docstring in Markdown without its lines on single keys (``lr: ...``), and those by key."""
    known = set(keys)
    paragraphs, of_keys, current = [""], dict[str, str](), ""
    for line in docstring.splitlines():
        named = re.match(r"(\w+(?:, \w+)*): +(.*)", line)
        if named and set(named[1].split(", ")) <= known:
            current = named[1].split(", ")[0]
            for key in named[1].split(", "):
                of_keys[key] = named[2]
        elif current and line.startswith("    "):
            of_keys[current] += f" {line.strip()}"
        elif line.strip():
            current = ""
            paragraphs[-1] += f" {line.strip()}"
        else:
            current = ""
            paragraphs.append("")
    about = "\n\n".join(_markdown(text.strip()) for text in paragraphs if text.strip())
    return about, {key: _markdown(text).replace("|", "\\|") for key, text in of_keys.items()}


def _markdown(text: str) -> str:
    """reStructuredText as docstrings have it, in Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _valid(value: Schema, places: dict[str, str]) -> str:
    """What a key may have, in words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{places[name]}](#{_anchor(places[name])})" if name in places else _MAPPING
    if "allOf" in value:
        return " and ".join(_valid(part, places) for part in value["allOf"])
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_valid(part, places) for part in value["anyOf"]))
    if "enum" in value:
        return ", ".join(f"`{_yaml(choice)}`" for choice in value["enum"])
    if "const" in value:
        return f"`{_yaml(value['const'])}`"
    kind = value.get("type")
    if kind == "array":
        if "prefixItems" in value:
            return f"[{', '.join(_valid(item, places) for item in value['prefixItems'])}]"
        items = _valid(value["items"], places) if value.get("items") else "anything"
        return f"list of: {items}"
    if kind == "object":
        values = value.get("additionalProperties")
        return f"mapping to: {_valid(values, places)}" if isinstance(values, dict) and values else _MAPPING
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    bounds = [
        f"{sign} {value[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in value and value[key] != MOST
    ]
    return " ".join(
        [{"null": "`null`"}.get(str(kind)) or names.get(str(kind), "anything"), ", ".join(bounds)]
    ).strip()


def _default(value: Schema) -> str:
    if "default" not in value:
        return "empty"
    text = _yaml(value["default"])
    return f"`{text}`" if len(text) <= 60 else "as below"


def _yaml(value: Any) -> str:
    """A value on one line, as YAML reads it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    write()
