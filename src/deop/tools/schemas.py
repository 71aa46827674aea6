"""JSON Schemas of the configuration files, made from the settings models: ``python -m deop.tools.schemas``.

Editors with a YAML language server complete and check the keys of a file whose first line names its schema. What a
schema cannot say (a name that has to be known elsewhere, a batch that has to divide) is checked when the workflow is
planned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deop.settings.benchmarks import BenchmarkClip, Rounds, ScalingBenchmark, SpeedBenchmark
from deop.settings.configuration import SECTIONS, VARIED
from deop.settings.datasets import Vocabulary, dataset_kinds, dataset_settings
from deop.settings.downloads import CatalogueEntry, Download
from deop.settings.files import ClipSection, MainFile
from deop.settings.methods import METHODS, DeOPSettings
from deop.settings.pretraining import PretrainBackbone, PretrainClip
from deop.settings.tables import OF_PROFILE, TablesFile
from deop.settings.training_free import TrainingFreeSettings
from deop.utils.files import write_text

FOLDER = Path("workflow/schemas")
Schema = dict[str, Any]

BUILT_IN = {name: model for name, model in METHODS.items() if model.__module__ == DeOPSettings.__module__} | {
    "training_free": TrainingFreeSettings
}
"""The methods whose settings are known without importing their modules."""
DATASETS = {kind: dataset_settings(kind) for kind in dataset_kinds()}

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT: Schema = {"type": "string"}
_ANYTHING: Schema = {"type": "object"}


def schemas() -> dict[str, Schema]:
    """The schema of each kind of configuration file, by file name.

    ``profile`` is that of ``config/config.yaml`` and of profiles, which change a part of it: no key is required in it,
    and any may be null.
    """
    return {
        "profile.schema.json": _profile(),
        "experiments.schema.json": _experiments(),
        "tables.schema.json": _complete(TablesFile),
        "vocabulary.schema.json": _complete(Vocabulary),
    }


def write(folder: Path = FOLDER) -> None:
    """Write the schemas to ``folder``."""
    for name, schema in schemas().items():
        write_text(folder / name, text_of(schema))


def text_of(schema: Schema) -> str:
    """A schema as its file has it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _complete(model: type[BaseModel]) -> Schema:
    return {"$schema": _DIALECT} | _untitled(model.model_json_schema())


def _profile() -> Schema:
    models = [
        *(MainFile, ClipSection, PretrainClip, PretrainBackbone, Download, CatalogueEntry, DeOPSettings),
        *(BenchmarkClip, Rounds, SpeedBenchmark, ScalingBenchmark),
        *DATASETS.values(),
        *BUILT_IN.values(),
        *SECTIONS.values(),
        *OF_PROFILE.values(),
    ]
    defs = _definitions(models)
    main = defs.pop(MainFile.__name__)
    sections = {
        "clip": _ref(ClipSection),
        "pretrain_clip": _pretrain_clip(defs),
        "pretrain_backbone": _with(
            defs, PretrainBackbone, without=("backbone", "backbone_args"), retrain={"type": "boolean"}
        ),
        "network": _per_dataset(defs, "network", DeOPSettings),
        "methods": _mapping(
            _ANYTHING,
            **{
                name: _per_dataset(defs, name, model)
                for name, model in BUILT_IN.items()
                if model is not DeOPSettings
            },
        ),
        **{name: _per_dataset(defs, name, model) for name, model in SECTIONS.items()},
    }
    for name, section in sections.items():  # for the file and for its variants to refer to
        if "$ref" not in section:
            defs[f"section {name}"] = section
            sections[name] = {"$ref": f"#/$defs/section {name}"}
    entries = {
        "datasets": {
            "anyOf": [*(_dataset(defs, model) for model in DATASETS.values()), _other("kind", DATASETS)]
        },
        "variants": {"type": "object", "properties": {name: sections[name] for name in VARIED}}
        | {"additionalProperties": False},
        "experiments": _experiment(defs),
        **{kind: _ref(model) for kind, model in OF_PROFILE.items()},
    }
    main["properties"] |= {
        **sections,
        **{kind: _mapping(entry) for kind, entry in entries.items()},
        "benchmark": _benchmark(defs),
    }
    defs["DataSection"]["properties"]["sources"] = _mapping(_source(defs))
    return _partial({"$schema": _DIALECT} | main | {"$defs": _used(main, defs)})


def _experiments() -> Schema:
    defs = _definitions(BUILT_IN.values())
    file = {
        "type": "object",
        "properties": {"experiments": _mapping(_experiment(defs))},
        "additionalProperties": False,
    }
    return _partial({"$schema": _DIALECT} | file | {"$defs": _used(file, defs)})


def _experiment(defs: Schema) -> Schema:
    """One of the methods of this package, whose keys are known, or another method by name."""
    known = [_with(defs, model, variant=_TEXT) for model in BUILT_IN.values()]
    return {"anyOf": [*known, _other("method", BUILT_IN)]}


def _other(key: str, known: Iterable[str]) -> Schema:
    """A mapping in which ``key`` is there and has none of the ``known`` values; nothing is known of its other keys."""
    missing = {"properties": {key: False}}
    return {"type": "object", "properties": {key: {"not": {"enum": list(known)}}}, "not": missing}


def _dataset(defs: Schema, model: type[BaseModel]) -> Schema:
    more = {"stands_for": _TEXT, "trained_on": _TEXT}
    if model.model_fields.get("vocabulary"):
        more["vocabulary"] = {"anyOf": [_TEXT, defs[model.__name__]["properties"]["vocabulary"]]}
    return _with(defs, model, **more)


def _pretrain_clip(defs: Schema) -> Schema:
    common = {"anyOf": [_TEXT, defs[PretrainClip.__name__]["properties"]["common"]]}
    section = _with(defs, PretrainClip, without=("model",), common=common)
    rounds = {"type": "array", "items": _with(defs, PretrainClip, common=common), "minItems": 1}
    return section | {"properties": section["properties"] | {"rounds": rounds}}


def _benchmark(defs: Schema) -> Schema:
    return _with(
        defs,
        Rounds,
        clips=_mapping(_ref(BenchmarkClip)),
        speed=_with(defs, SpeedBenchmark, without=("clips",)),
        scaling=_with(defs, ScalingBenchmark, without=("clip",)),
    )


def _source(defs: Schema) -> Schema:
    of_source = defs[Download.__name__]["properties"]
    return _with(defs, CatalogueEntry, **{key: of_source[key] for key in ("mirrors", "path")})


def _per_dataset(defs: Schema, name: str, model: type[BaseModel]) -> Schema:
    """A section of which ``per_dataset`` changes any key for one dataset."""
    this = {"$ref": f"#/$defs/section {name}"}
    defs[f"section {name}"] = _with(defs, model, per_dataset=_mapping(this))
    return this


def _with(defs: Schema, model: type[BaseModel], without: tuple[str, ...] = (), **more: Schema) -> Schema:
    """The schema of a model in which some keys are missing, and others are allowed besides."""
    schema = deepcopy(defs[model.__name__])
    kept = {key: value for key, value in schema["properties"].items() if key not in without}
    return schema | {"properties": kept | more}


def _mapping(values: Schema, **known: Schema) -> Schema:
    """Any names, each with such a value, but for those of which more is known."""
    properties = {"properties": known} if known else {}
    return {"type": "object", **properties, "additionalProperties": values}


def _ref(model: type[BaseModel]) -> Schema:
    return {"$ref": f"#/$defs/{model.__name__}"}


def _definitions(models: Any) -> dict[str, Schema]:
    """The schemas of these models and of those within them, by name."""
    _, schema = models_json_schema([(model, "validation") for model in models])
    return _untitled(schema["$defs"])


def _used(schema: Schema, defs: dict[str, Schema]) -> dict[str, Schema]:
    """The definitions that a schema refers to, directly or through others."""
    used: set[str] = set()
    todo = [schema]
    while todo:
        named = set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(todo.pop()))) - used
        used |= named
        todo += [defs[name] for name in named]
    return {name: defs[name] for name in sorted(used)}


def _untitled(schema: Any) -> Any:
    """The same without the titles that pydantic derives from names."""
    if isinstance(schema, list):
        return [_untitled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _untitled(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def _partial(schema: Any) -> Any:
    """The same with no key required, and null allowed for each value."""
    if isinstance(schema, list):
        return [_partial(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {
        key: _partial(value)
        for key, value in schema.items()
        if not (key == "required" and isinstance(value, list))
    }
    if isinstance(changed.get("properties"), dict):
        changed["properties"] = {key: _nullable(value) for key, value in changed["properties"].items()}
    if isinstance(changed.get("additionalProperties"), dict):
        changed["additionalProperties"] = _nullable(changed["additionalProperties"])
    return changed


def _nullable(schema: Schema | bool) -> Schema | bool:
    if isinstance(schema, bool):
        return schema
    about = {key: schema[key] for key in ("default", "description") if key in schema}
    value = {key: part for key, part in schema.items() if key not in about}
    if "anyOf" in value:
        choices = (
            value["anyOf"] if {"type": "null"} in value["anyOf"] else [*value["anyOf"], {"type": "null"}]
        )
        return {"anyOf": choices} | about
    if (
        isinstance(value.get("type"), str)
        and value["type"] != "object"
        and not {"enum", "const"} & value.keys()
    ):
        return value | {"type": [value["type"], "null"]} | about
    return {"anyOf": [value, {"type": "null"}]} | about


if __name__ == "__main__":
    write()
