"""The planner: which jobs a configuration asks for, and what changes their keys."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from deop.errors import ConfigError
from deop.jobs import recipes
from deop.jobs.job import Job
from deop.jobs.jobs import NAMED, marker
from deop.jobs.plan import Plan
from deop.settings.configuration import Configuration
from deop.settings.methods import DeOPSettings

ROOT = Path(__file__).parents[1]


def jobs(plan: Plan) -> set[tuple[str, str]]:
    return set(plan.jobs)


def new_jobs(before: Plan, after: Plan) -> Counter:
    """The jobs of the second plan that the first has not, by stage."""
    return Counter(stage for stage, _ in jobs(after) - jobs(before))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_tables_need_each_piece_once(root, config, seeds):
    plan = Plan(config | {"seeds": list(range(seeds))}, root)
    assert Counter(stage for stage, _ in plan.jobs) == {
        "prepare_data": 2 + 5,
        "learn_prompts": (2 + 1) * seeds,  # of each dataset, and for the larger CLIP
        "train_proposals": 2 * seeds,
        "train_segmentation": (4 * 2 + 3 + 1 + 2) * seeds,  # Tables 3, 5, 6, S1
        "train_multipass": (2 * 2 + 1) * seeds,  # Tables 1 and 6
        # Tables 3 and 1, 2, 4, 5, 6, S1, and S3, which has a row of Table 4's
        "evaluate": ((5 + 2) * 2 + 2 * 5 + 7 + 3 + 2 + 4 + 5) * seeds,
        "measure_speed": 3,
        "table": 8,
        "claims": 1,
        "benchmark": 2,
        "figure": 9,
        "picture": 2,
    }


def test_inputs_of_an_evaluation_are_the_whole_chain(root, config):
    config["clip"]["retrain"] = True
    plan = Plan(config, root)
    table = plan.tables["table3"]
    by_output = {job.output: job for job in plan.jobs.values()}
    baseline, deop = (by_output[table.inputs[f"{name}/es20/0"]] for name in ("baseline", "deop"))
    assert set(baseline.inputs) == {"data", "clip", "prompts", "proposals"}
    assert set(deop.inputs) == {"data", "clip", "prompts", "proposals", "segmentation"}
    assert {role: by_output[path].stage for role, path in deop.inputs.items()} == {
        "data": "prepare_data",
        "clip": "pretrain_clip",
        "prompts": "learn_prompts",
        "proposals": "train_proposals",
        "segmentation": "train_segmentation",
    }
    assert {path.split("-")[0] for path in deop.inputs.values()} == {
        "data/es20",
        "checkpoints/clip/deop",
        "checkpoints/prompts/es20",
        "checkpoints/proposals/es20",
        "checkpoints/segmentation/es20",
    }
    # A CLIP that is trained here is an input; the weights it replaces play no part.
    assert deop.settings["clip"]["pretrained"] is None
    files = plan.inputs("evaluate")(SimpleNamespace(key=deop.key))
    assert files == sorted(marker(by_output[path]) for path in deop.inputs.values())
    assert {Path(file).name for file in files} == {"dataset.json", "model.safetensors"}


def test_rounds_of_pretraining_follow_each_other(root, config):
    config["clip"]["retrain"] = True
    config["variants"]["large"] = {}
    config["pretrain_clip"]["rounds"] = [{"images": 1000}, {"images": 500, "lr": 1e-4}]
    first, second = (job for (stage, _), job in Plan(config, root).jobs.items() if stage == "pretrain_clip")
    assert first.inputs == {} and second.inputs == {"clip": first.output}
    assert first.seed != second.seed  # fresh scenes
    assert second.settings["pretrain_clip"]["lr"] == 1e-4
    # What learns from CLIP learns from the last round; changing the first makes all of it new.
    prompts = next(job for (stage, _), job in Plan(config, root).jobs.items() if stage == "learn_prompts")
    assert prompts.inputs["clip"] == second.output
    before = Plan(config, root)
    config["pretrain_clip"]["rounds"][0]["images"] = 2000
    assert new_jobs(before, Plan(config, root))["pretrain_clip"] == 2


def test_the_weights_that_a_text_tower_comes_from_are_part_of_the_key(root, config, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "WEIGHTS", tmp_path)
    (tmp_path / "resnet10t.json").write_text(json.dumps({"sha256": "00"}))
    config["clip"]["retrain"] = True
    config["variants"]["large"] = {}
    config["pretrain_clip"] |= {"text_from": "deop-mini", "rounds": [{"images": 1000}]}
    with pytest.raises(
        ConfigError, match=r"pretrain_clip.text_from: no weights are bundled for model 'deop-mini'"
    ):
        Plan(config, root)
    keys = set()
    for checksum in ("aa", "bb"):
        (tmp_path / "deop-mini.json").write_text(json.dumps({"sha256": checksum}))
        keys |= {key for stage, key in Plan(config, root).jobs if stage == "pretrain_clip"}
    assert len(keys) == 2


def test_a_change_of_one_experiment_changes_it_alone(root, config, edit):
    before = Plan(config, root)
    edit(root / "config/experiments.yaml", "experiments", "deop", "anchors", "layers", to=2)
    assert new_jobs(before, Plan(config, root)) == {
        "train_segmentation": 2,
        "evaluate": 2 + 5,
        "measure_speed": 2,
        "table": 4,
        "claims": 1,
        "figure": 6,
        "picture": 2,
    }


def test_what_a_multipass_system_is_trained_on_and_what_only_tests_it(root, config, edit):
    config["clip"]["retrain"] = True
    before = Plan(config, root)
    evaluation = before.tables["table1"].inputs["simbaseline/es20/0"]
    by_output = {job.output: job for job in before.jobs.values()}
    assert set(by_output[evaluation].inputs) == {"data", "clip", "prompts", "multipass"}
    # Templates in place of the learned prompt, in both streams.
    zegformer = by_output[before.tables["table1"].inputs["zegformer/es20/0"]]
    assert set(zegformer.inputs) == {"data", "clip", "multipass"}
    # As the release has it, for the dataset that stands for VOC alone.
    weights = {
        name: by_output[before.tables["table1"].inputs[f"simbaseline/{name}/0"]].settings["network"][
            "ensemble_weight"
        ]
        for name in ("es171", "es20")
    }
    assert weights == {"es171": 0.8, "es20": 0.7}
    config["prompts"]["iterations"] += 1
    zegformer_again = Plan(config, root).tables["table1"].inputs["zegformer/es20/0"]
    assert zegformer_again == before.tables["table1"].inputs["zegformer/es20/0"]
    config["prompts"]["iterations"] -= 1
    # The ensemble is a matter of testing, the class head one of training.
    edit(root / "config/experiments.yaml", "experiments", "simbaseline", "ensemble_weight", to=0.6)
    tested = {"evaluate": 2 + 5, "measure_speed": 2, "table": 2, "claims": 1, "figure": 2}
    assert new_jobs(before, Plan(config, root)) == tested
    edit(root / "config/experiments.yaml", "experiments", "simbaseline", "class_weight", to=2.0)
    assert new_jobs(before, Plan(config, root)) == tested | {"train_multipass": 2}


def test_a_transferred_system_is_the_one_trained_for_its_own_dataset(root, config):
    config["clip"]["retrain"] = True
    plan = Plan(config, root)
    by_output = {job.output: job for job in plan.jobs.values()}
    for name, trained in (("deop", "segmentation"), ("simbaseline", "multipass")):
        at_home = by_output[plan.tables["table1"].inputs[f"{name}/es171/0"]]
        abroad = by_output[plan.tables["table2"].inputs[f"{name}/om59/0"]]
        assert abroad.inputs[trained] == at_home.inputs[trained]
        changed = {role for role, path in abroad.inputs.items() if at_home.inputs[role] != path}
        assert (
            changed == {"data"}
            and by_output[abroad.inputs["data"]].settings["dataset"]["style"] == "openmoji"
        )
        assert abroad.settings["transfer"] == {"trained_on": "es171"} and "transfer" not in at_home.settings
    # As the release has it for datasets that a system was not trained on.
    weights = [
        by_output[plan.tables["table2"].inputs[f"simbaseline/{name}/0"]].settings["network"][
            "ensemble_weight"
        ]
        for name in ("om20", "om59", "om150", "om847")
    ]
    assert weights == [0.4, 0.4, 0.5, 0.7]


def test_a_variant_changes_what_it_names_for_the_experiments_that_name_it(root, config, edit):
    before = Plan(config, root)
    experiment = {"variant": "larger", "severance": {"kind": "gps"}}
    edit(root / "config/experiments.yaml", "experiments", "gps_larger", to=experiment)
    row = {"label": "Larger", "experiment": "gps_larger"}
    rows = yaml.safe_load((root / "config/tables.yaml").read_text())["tables"]["table5"]["rows"]
    edit(root / "config/tables.yaml", "tables", "table5", "rows", to=[*rows, row])
    with pytest.raises(
        ConfigError, match=r"experiments\.gps_larger\.variant: unknown variant 'larger'; valid: large"
    ):
        Plan(config, root)
    severance = {"alpha": {-1: 0.25}}
    config["variants"]["larger"] = {"clip": {"model": "ViT-B-16"}, "network": {"severance": severance}}
    after = Plan(config, root)
    # Its CLIP has prompts of its own; proposals know no CLIP.
    new = {"learn_prompts": 1, "evaluate": 1, "table": 1, "figure": 1}
    assert new_jobs(before, after) == new
    evaluation = next(after.jobs[key] for key in jobs(after) - jobs(before) if key[0] == "evaluate")
    assert evaluation.settings["clip"]["model"] == "ViT-B-16"
    assert evaluation.settings["network"]["severance"]["alpha"] == {"-3": 1, "-2": 1, "-1": 0.25}
    config["variants"]["larger"] = {"prompts": {"lrr": 1}}
    with pytest.raises(ConfigError, match=r"config with variant 'larger': prompts: unknown key 'lrr'; valid"):
        Plan(config, root)
    config["variants"]["larger"] = {"seeds": {}}
    with pytest.raises(ConfigError, match=r"variants\.larger: unknown section 'seeds'; valid: clip"):
        Plan(config, root)


def test_a_network_with_templates_needs_no_learned_prompt(root, config):
    plan = Plan(config, root)
    by_output = {job.output: job for job in plan.jobs.values()}
    job = by_output[plan.tables["tableS1"].inputs["baseline_imagenet/es171/0"]]
    assert set(job.inputs) == {"data", "proposals"} and "prompts" not in job.settings
    assert job.settings["network"]["templates"] == "imagenet"
    config["prompts"]["iterations"] += 1
    after = Plan(config, root)
    assert job.key in {key for stage, key in jobs(after) if stage == "evaluate"}


def test_identical_experiments_under_two_names_are_one_job(root, config, edit):
    before = Plan(config, root)
    path = root / "config/experiments.yaml"
    edit(path, "experiments", "twin", to=yaml.safe_load(path.read_text())["experiments"]["deop"])
    layout = yaml.safe_load((root / "config/tables.yaml").read_text())["tables"]["table3"]
    rows = [*layout["rows"], {"label": "Twin", "experiment": "twin"}]
    edit(root / "config/tables.yaml", "tables", "table3", "rows", to=rows)
    after = Plan(config, root)
    assert new_jobs(before, after) == {"table": 1, "figure": 1}
    table = after.tables["table3"]
    assert table.inputs["twin/es171/0"] == table.inputs["deop/es171/0"]


def test_a_change_for_one_dataset_leaves_the_other(root, config):
    before = Plan(config, root)
    config["proposals"]["per_dataset"] = {"es20": {"iterations": 7, "augmentation": {"crop": 32}}}
    after = Plan(config, root)
    assert new_jobs(before, after) == {
        "train_proposals": 1,
        "train_segmentation": 4,
        "train_multipass": 2,
        "evaluate": 7,
        "measure_speed": 1,
        "table": 2,
        "claims": 1,
        "figure": 2,
    }
    outputs = {
        job.output for key, job in after.jobs.items() if key not in before.jobs and key[0] not in NAMED
    }
    assert all(Path(output).name.startswith("es20-") for output in outputs)
    (changed,) = (after.jobs[key] for key in jobs(after) - jobs(before) if key[0] == "train_proposals")
    assert changed.settings["proposals"]["iterations"] == 7
    # Values inside a section are put over the defaults one by one.
    assert changed.settings["proposals"]["augmentation"] == {
        "flip": 0.5,
        **config["proposals"]["augmentation"],
        "crop": 32,
    }


def test_a_profile_may_drop_what_the_defaults_say_of_one_dataset(root, config):
    """Otherwise the mini profile's exception for es20 would hold in every profile."""
    tiny = yaml.safe_load((root / "config/tiny.yaml").read_text())
    assert config["proposals"]["per_dataset"]
    for section in ("proposals", "segmentation"):
        config[section] |= tiny[section]
    trained = [job for job in Plan(config, root).jobs.values() if job.stage == "train_segmentation"]
    assert {job.settings["proposals"]["iterations"] for job in trained} == {tiny["proposals"]["iterations"]}
    assert {job.settings["segmentation"]["lr"] for job in trained} == {config["segmentation"]["lr"]}


def test_the_profile_says_how_parts_are_built_and_the_experiment_whether(root, config, edit):
    config["network"]["severance"] = {"alpha": {-2: 1, -1: 1}}
    edit(
        root / "config/experiments.yaml",
        "experiments",
        "baseline_plus_ps",
        "severance",
        "alpha",
        to={-1: 0.5},
    )
    systems = Configuration(config, root).experiments
    networks = {
        name: of["es171"].severance for name, of in systems.items() if isinstance(of["es171"], DeOPSettings)
    }
    assert networks["deop"].alpha == {-2: 1, -1: 1}
    assert networks["baseline_plus_ps"].alpha == {-1: 0.5}  # as a whole, not on top of the profile's
    assert networks["baseline"].alpha == {}


def test_other_bundled_weights_are_another_input(root, config, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "WEIGHTS", tmp_path)
    config["clip"]["pretrained"] = "bundled"
    config["variants"]["large"] = {}
    with pytest.raises(ConfigError, match=r"no weights are bundled for model 'deop-mini'.*clip.retrain"):
        Plan(config, root)
    (tmp_path / "deop-mini.json").write_text(json.dumps({"sha256": "aa"}))
    with pytest.raises(ConfigError, match=r"no weights are bundled for model 'resnet10t'.*backbone.retrain"):
        Plan(config, root)
    (tmp_path / "resnet10t.json").write_text(json.dumps({"sha256": "00"}))
    plans = []
    for checksum in ("aa", "bb"):
        (tmp_path / "deop-mini.json").write_text(json.dumps({"sha256": checksum}))
        plans.append(Plan(config, root))
    shared = {stage for stage, _ in jobs(plans[0]) & jobs(plans[1])}
    assert shared == {"prepare_data", "train_proposals", "benchmark", "figure"}  # the figure of a benchmark

    # The proposal network's backbone: of no interest to prompts.
    (tmp_path / "resnet10t.json").write_text(json.dumps({"sha256": "11"}))
    shared = {stage for stage, _ in jobs(plans[1]) & jobs(Plan(config, root))}
    assert shared == {"prepare_data", "learn_prompts", "benchmark", "figure"}


def test_a_backbone_trained_here_is_one_input_of_all_proposals(root, config):
    config["pretrain_backbone"]["retrain"] = True
    plan = Plan(config, root)
    (backbone,) = (job for (stage, _), job in plan.jobs.items() if stage == "pretrain_backbone")
    assert backbone.settings["pretrain_backbone"]["backbone"] == config["proposals"]["backbone"]
    proposals = [job for (stage, _), job in plan.jobs.items() if stage == "train_proposals"]
    assert len(proposals) == 2 and all(job.inputs["backbone"] == backbone.output for job in proposals)
    config["pretrain_backbone"]["backbone"] = "resnet50"
    with pytest.raises(ConfigError, match=r"unknown key 'backbone'; it is proposals\.backbone"):
        Plan(config, root)


def test_job_files_hold_the_jobs_and_are_mended(root, config):
    plan = Plan(config, root)
    plan.write()
    job = next(job for job in plan.jobs.values() if job.stage == "evaluate")
    path = root / plan.job_file("evaluate")(SimpleNamespace(key=job.key))
    assert Job.model_validate_json(path.read_text()) == job
    path.write_text("{")
    plan.write()
    assert Job.model_validate_json(path.read_text()) == job
    assert len(list(path.parent.iterdir())) == len(plan.jobs)


def test_every_profile_can_be_planned(tmp_path, monkeypatch):
    """The files as they are; only the checksums of the weights are made up."""
    monkeypatch.setattr(recipes, "WEIGHTS", tmp_path)
    for model in ("deop-mini", "deop-mini-large", "resnet10t"):
        (tmp_path / f"{model}.json").write_text('{"sha256": "aa"}')
    default = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    profiles = set()
    for path in sorted((ROOT / "config").glob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        if "profile" in values:
            config = copy.deepcopy(default)
            if path.stem == "release":  # put over another one
                _overlay(config, yaml.safe_load((ROOT / "config/paper.yaml").read_text()))
            _overlay(config, values)
            assert "table3" in Plan(config, ROOT).tables
            profiles.add(values["profile"])
    assert profiles >= {"mini", "tiny"}


def _overlay(values: dict, changes: dict) -> None:
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            _overlay(values[key], change)
        else:
            values[key] = change
