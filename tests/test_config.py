"""Configurations that cannot be run: one error, which names the file or key, the value and what is valid."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deop.errors import ConfigError
from deop.jobs.plan import Plan
from deop.settings.clip_layers import layers_of


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("promts",), {}, "config: unknown key 'promts'; valid: accelerate, benchmark, clip, data"),
        (("profile",), " ", r"config: profile: valid: any name of .* \(got ' '\)"),
        (("profile",), "two\nlines", "config: profile: valid: any name of .* letters, digits"),
        (("profile",), "5 $ each", "config: profile: valid: any name of .* letters, digits"),
        (("seeds",), [], "config: seeds: .* at least 1 item"),
        (("clip", "retrian"), True, "config: clip: unknown key 'retrian'; valid: .*retrain"),
        (("prompts", "lrr"), 1, "config: prompts: unknown key 'lrr'; valid: .*batch_size.*lr"),
        (("prompts", "iterations"), "many", r"config: prompts\.iterations: .* \(got 'many'\)"),
        (
            ("proposals", "augmentation", "zoom"),
            2,
            "proposals.augmentation: unknown key 'zoom'; valid: .*crop",
        ),
        (
            ("proposals", "per_dataset"),
            {"es21": {}},
            "proposals.per_dataset: unknown dataset 'es21'; valid: es1",
        ),
        (
            ("proposals", "per_dataset"),
            ["es20"],
            r"proposals\.per_dataset: by dataset, .* \(got \['es20'\]\)",
        ),
        (
            ("proposals", "per_dataset"),
            {"es20": 3},
            r"proposals\.per_dataset: by dataset, .* \(got \{'es20': 3\}",
        ),
        (("datasets",), ["es20"], "config: datasets: "),
        (
            ("datasets", "es20", "kind"),
            ["folder"],
            r"datasets\.es20\.kind: unknown kind of dataset \['folder'\]",
        ),
        (("evaluation", "miou"), "all", "evaluation.miou: unknown value 'all'; valid: 'occurring' or"),
        (
            ("datasets", "es20", "vocabulary"),
            "es21",
            "datasets.es20.vocabulary: .* 'es21'; valid: es150, es171",
        ),
        (
            ("datasets", "es20", "style"),
            "noto",
            "datasets.es20.style: unknown value 'noto'; valid: 'twemoji'",
        ),
        (("datasets", "es20", "stands_for"), "city", "es20.stands_for: .* 'city'; valid: coco_stuff, voc"),
        (("datasets", "es20", "stands_for"), "coco_stuff", "'coco_stuff' already has a stand-in, 'es171'"),
        (
            ("datasets", "es20", "stands_for"),
            None,
            "table1.datasets: unknown dataset 'voc'; valid: coco_stuff, voc20",
        ),
        (
            ("methods", "zegfomer"),
            {},
            "config: methods: unknown method 'zegfomer'; valid: deop, simbaseline, zegformer",
        ),
        (("accelerate",), "gpus3", "config: accelerate: .* 'gpus3'; valid: gpus4, gpus8, nodes2x8, single"),
        (
            ("resources", "training"),
            {},
            "config: resources: unknown key 'training'; valid: benchmark, build_system, claims",
        ),
        (("pretrain_clip", "model"), "x", "unknown key 'model'; the model is clip.model"),
        (
            ("pretrain_clip", "rounds"),
            {},
            r"pretrain_clip.rounds: {} is not a list of what each round changes",
        ),
        (
            ("pretrain_clip", "rounds"),
            [{"images": 1, "lrate": 1}],
            "pretrain_clip.rounds.0: unknown key 'lrate'; valid: .*lr",
        ),
        (
            ("pretrain_backbone", "retrain"),
            "no",
            r"pretrain_backbone\.retrain: true or false .* \(got 'no'\)",
        ),
        (("network", "severance"), "gps", r"config: network\.severance: .* dictionary .*\(got 'gps'\)"),
        (
            ("network", "anchors"),
            {"layer": 2},
            r"config: network\.anchors: unknown key 'layer'; valid: .*layers",
        ),
        (("benchmark", "speed"), 3, r"config: benchmark\.speed: a mapping is needed \(got 3\)"),
        (
            ("benchmark", "clips"),
            {"deop-mini": 3},
            r"benchmark\.clips\.deop-mini: a mapping is needed \(got 3\)",
        ),
        (
            ("benchmark", "scaling", "model"),
            ["a"],
            r"benchmark\.scaling\.model: unknown CLIP .* \['a'\]; valid: ",
        ),
        (
            ("experiments",),
            {"deop": {"variant": ["large"]}},
            r"config: experiments\.deop\.variant: unknown variant \['large'\]; valid: large",
        ),
    ],
)
def test_config_errors_name_key_value_and_choices(root, config, keys, value, message):
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(ConfigError, match=f"^config error: .*{message}"):
        Plan(config, root)


@pytest.mark.parametrize(
    ("name", "keys", "value", "message"),
    [
        ("tables.yaml", ("tables", "table3", "rows", 0, "experiment"), "doep",
         "config/tables.yaml: tables.table3.rows: unknown experiment 'doep'; valid: baseline, .*deop"),
        ("tables.yaml", ("tables", "table3", "metrics"), ["IoU"],
         "config/tables.yaml: tables.table3.metrics.0: unknown value 'IoU'; valid: 'pAcc', 'mIoU'"),
        ("tables.yaml", ("tables", "table3", "datasets"), ["ade20k"],
         "tables.table3.datasets: unknown dataset 'ade20k'; valid: coco_stuff, voc"),
        ("tables.yaml", ("tables", "table3", "reported"), 9, "unknown table of the paper 9; valid: 1, 2, 3"),
        ("tables.yaml", ("tables", "table3", "rows", 0, "name"), "x",
         "config/tables.yaml: tables.table3.rows.0: unknown key 'name'; valid: decoupled, experiment, label"),
        ("experiments.yaml", ("experiments", "simbaseline", "method"), "simbase",
         "experiments.simbaseline.method: unknown method 'simbase'; valid: deop, simbaseline, zegformer"),
        ("experiments.yaml", ("experiments", "zegformer", "ensemble_wieght"), 0.5,
         "experiments.zegformer: unknown key 'ensemble_wieght'; valid: calibration, class_weight"),
        ("tables.yaml", ("pictures", "scene", "experiment"), "zegformer",
         "pictures.scene.experiment: 'zegformer' has no anchor heatmap to show"),
        ("experiments.yaml", ("experiments", "deop", "anchors", "kind"), "conv3",
         "config/experiments.yaml: experiments.deop.anchors.kind: unknown value 'conv3'; valid: 'none'"),
        ("experiments.yaml", ("experiments", "deop", "severance"), {"kind": "mps", "alpha": {-1: 0.5}},
         "experiments.deop.severance: .*'mps' has only alphas 0 and 1"),
        ("vocabularies/es20.yaml", ("unseen",), ["unicorn"],
         "config/vocabularies/es20.yaml: unseen classes that are not in things or stuff: unicorn"),
    ],
)  # fmt: skip
def test_errors_in_other_files_name_the_file(root, config, name, keys, value, message, edit):
    edit(root / "config" / name, *keys, to=value)
    with pytest.raises(ConfigError, match=message):
        Plan(config, root)


@pytest.mark.faults("a configuration file is not YAML, not UTF-8 or gone", "one line with its path")
def test_files_that_cannot_be_read(root, config, injected):
    injected(2)
    (root / "config/experiments.yaml").write_text("experiments: [")
    with pytest.raises(ConfigError, match=r"config/experiments\.yaml is not YAML"):
        Plan(config, root)
    (root / "config/experiments.yaml").unlink()
    with pytest.raises(ConfigError, match=r"config/experiments\.yaml is not there"):
        Plan(config, root)


@pytest.mark.parametrize(
    ("model", "alpha", "message"),
    [
        # deop-mini has 6 layers, deop-mini-large 9, open_clip's ViT-B-16 and its -quickgelu 12.
        ("deop-mini", {-7: 1}, "layer -7, but CLIP model 'deop-mini' has 6 layers; valid: -6 to 5"),
        ("deop-mini", {6: 0}, "layer 6, but CLIP model 'deop-mini' has 6 layers; valid: -6 to 5"),
        ("deop-mini", {5: 1, -1: 1}, "layers 5 and -1, which are the same of the 6 layers"),
        (
            "ViT-B-16-quickgelu",
            {-13: 1},
            "layer -13, but .* 'ViT-B-16-quickgelu' has 12 layers; valid: -12 to 11",
        ),
    ],
)
def test_severed_layers_that_the_clip_does_not_have_are_refused(root, config, edit, model, alpha, message):
    config["clip"] |= {"model": model}
    edit(root / "config/experiments.yaml", "experiments", "gps_0_1", "severance", "alpha", to=alpha)
    with pytest.raises(ConfigError, match=f"^config error: config: experiment 'gps_0_1': .*{message}"):
        Plan(config, root)


def test_each_variants_severance_is_checked_with_its_own_clip(root, config):
    network = config["variants"]["large"]["network"]
    network["severance"] = {"alpha": {-9: 1}}
    Plan(config, root)  # deop-mini, without the variant, has 6 layers
    network["severance"]["alpha"] = {-10: 1}
    message = (
        "experiment 'deop_large': .* layer -10, but CLIP model 'deop-mini-large' has 9 layers; valid: -9 to 8"
    )
    with pytest.raises(ConfigError, match=message):
        Plan(config, root)


def test_the_severance_of_benchmarks_is_checked_too(root, config):
    config["benchmark"]["clips"]["ViT-B-16"]["network"] = {"severance": {"alpha": {12: 1}}}
    with pytest.raises(
        ConfigError, match=r"benchmark.clips.ViT-B-16.network: .* layer 12, .* 12 layers; valid: -12"
    ):
        Plan(config, root)


def test_models_whose_layers_are_not_written_down_are_left_to_run_time(root, config):
    """A tower of timm, and a name that is looked up elsewhere."""
    for model in ("ViT-B-16-SigLIP", "hf-hub:someone/model"):
        config["clip"] |= {"model": model}
        config["network"]["severance"] = {"alpha": {-40: 1}}
        config["variants"]["large"] = {}
        assert Plan(config, root).jobs


def test_an_unknown_clip_is_refused_with_the_closest_names(root, config):
    config["clip"] |= {"model": "ViT-B/16"}
    with pytest.raises(
        ConfigError, match=r"config: clip.model: unknown CLIP model 'ViT-B/16'; closest: .*ViT-B-16"
    ):
        Plan(config, root)


def test_planning_imports_nothing_heavy(root):
    """The plan is made each time the Snakefile is read."""
    code = (
        "import sys, yaml; from pathlib import Path; from deop.jobs.plan import Plan; "
        "Plan(yaml.safe_load(open('config/config.yaml')), Path()); "
        "print({'torch', 'open_clip', 'timm', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_layer_counts_are_those_that_open_clip_builds():
    import open_clip

    import deop.models.clip  # noqa: F401  registers the package's own models

    for model in ("deop-mini", "deop-mini-large", "ViT-S-32", "ViT-B-16-quickgelu"):
        built = open_clip.create_model(model)
        assert layers_of(model) == len(built.visual.transformer.resblocks), model
