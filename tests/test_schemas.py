"""The JSON Schemas with which editors complete and check configuration files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from deop.tools.schemas import FOLDER, schemas, text_of

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config"
KINDS = {
    "experiments": [CONFIG / "experiments.yaml"],
    "tables": [CONFIG / "tables.yaml"],
    "vocabulary": sorted((CONFIG / "vocabularies").glob("*.yaml")),
}
# Any other file there is config.yaml or a profile.
KINDS["profile"] = [path for path in sorted(CONFIG.glob("*.yaml")) if [path] not in KINDS.values()]
FILES = [(path, f"{kind}.schema.json") for kind, paths in KINDS.items() for path in paths]


@pytest.mark.parametrize("name", schemas())
def test_schemas_are_those_of_the_settings(name: str) -> None:
    written = ROOT / FOLDER / name
    assert written.exists() and written.read_text() == text_of(schemas()[name]), (
        "out of date: run `make schemas`"
    )


@pytest.mark.parametrize(("path", "name"), FILES, ids=lambda value: getattr(value, "name", value))
def test_every_file_names_its_schema_and_fits_it(path: Path, name: str) -> None:
    schema = ROOT / FOLDER / name
    line = f"# yaml-language-server: $schema={os.path.relpath(schema, path.parent)}"
    assert path.read_text().splitlines()[0] == line, (
        f"the first line of {path.relative_to(ROOT)} should be {line}"
    )
    validator = Draft202012Validator(json.loads(schema.read_text()))
    problems = [
        f"{error.json_path}: {error.message}"
        for error in validator.iter_errors(yaml.safe_load(path.read_text()))
    ]
    assert not problems


@pytest.mark.parametrize(
    ("name", "text", "fits"),
    [
        ("profile", "{}", True),
        ("profile", "datasets: {es171: null}", True),
        ("profile", "datasets: {mine: {kind: folder, root: photos, stands_for: voc}}", True),
        ("profile", "datasets: {mine: {kind: folder, roots: photos}}", False),
        ("profile", "datasets: {mine: {kind: cityscapes, split: fine}}", True),
        ("profile", "prompts: {iterations: 10, per_dataset: {es20: {iterations: 20}}}", True),
        ("profile", "prompts: {iteration: 10}", False),
        ("profile", "prompts: {per_dataset: {es20: {iteration: 20}}}", False),
        ("profile", "prompts: {iterations: -1}", False),
        ("profile", "variants: {large: {clip: {model: ViT-L-14}}}", True),
        ("profile", "variants: {large: {clip: {modell: ViT-L-14}}}", False),
        ("profile", "network: {severance: {alpha: {'-1': 2}}}", False),
        ("profile", "benchmark: {clips: {ViT-B-16: {crops: [10]}}, speed: {classes: [20]}}", True),
        ("profile", "benchmark: {clips: {ViT-B-16: {crop: [10]}}}", False),
        ("profile", "experiments: {deop: {anchors: {layers: 3}}}", True),
        ("profile", "pretrain_clip: {common: es171, rounds: [{images: 64}, {lr: 0.1}]}", True),
        ("profile", "resource: {}", False),
        ("experiments", "experiments: {mine: {anchors: {kind: query}, variant: large}}", True),
        ("experiments", "experiments: {mine: {anchor: {kind: query}}}", False),
        ("experiments", "experiments: {mine: {method: zegformer, severance: {kind: gps}}}", False),
        (
            "experiments",
            "experiments: {mine: {method: dense_clip, layers: 2}}",
            True,
        ),  # keys that are its own
    ],
)
def test_misspelt_keys_and_impossible_values_are_marked(name: str, text: str, fits: bool) -> None:
    validator = Draft202012Validator(schemas()[f"{name}.schema.json"])
    assert validator.is_valid(yaml.safe_load(text)) == fits
