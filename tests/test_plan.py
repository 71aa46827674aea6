"""The planner: which jobs a configuration asks for, and what changes their keys."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from asked import Asked

from deop.errors import ConfigError
from deop.jobs import pipeline
from deop.jobs.job import Job
from deop.jobs.jobs import NAMED
from deop.jobs.plan import Plan
from deop.settings.configuration import Configuration
from deop.settings.methods import DeOPSettings

ROOT = Path(__file__).parents[1]


def jobs(plan: Plan) -> set[tuple[str, str]]:
    return set(plan.jobs)


def new_jobs(before: Plan, after: Plan) -> Counter:
    """The jobs of the second plan that the first has not, by stage."""
    return Counter(stage for stage, _ in jobs(after) - jobs(before))


def system_in(plan: Plan, table: str, role: str) -> Job:
    """The system that a table shows an evaluation of."""
    by_output = {job.output: job for job in plan.jobs.values()}
    return by_output[by_output[plan.tables[table].inputs[role]].inputs["system"]]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_tables_need_each_piece_once(root, config, seeds):
    config["seeds"] = list(range(seeds))
    planned = Counter(stage for stage, _ in Plan(config, root).jobs)
    assert planned == Asked(config, root).jobs()
    assert set(planned) >= {
        "prepare_data",
        "learn_prompts",
        "train_proposals",
        "train_system",
        "evaluate",
        "picture",
    }


def test_inputs_of_an_evaluation_are_the_whole_chain(root, config):
    config["clip"]["retrain"] = True
    plan = Plan(config, root)
    table = plan.tables["table3"]
    by_output = {job.output: job for job in plan.jobs.values()}
    evaluations = [by_output[table.inputs[f"{name}/es20/0"]] for name in ("baseline", "deop")]
    baseline, deop = (by_output[evaluation.inputs["system"]] for evaluation in evaluations)
    assert set(baseline.inputs) == {"data", "clip", "prompts", "proposals"}
    assert {role: by_output[path].stage for role, path in deop.inputs.items()} == {
        "data": "prepare_data",
        "clip": "pretrain_clip",
        "prompts": "learn_prompts",
        "proposals": "train_proposals",
        "trained": "train_system",
    }
    assert {path.split("-")[0] for path in deop.inputs.values()} == {
        "data/es20",
        "checkpoints/clip/deop",
        "checkpoints/prompts/es20",
        "checkpoints/proposals/es20",
        "checkpoints/training/es20",
    }
    # A CLIP that is trained here is an input; the weights it replaces play no part.
    assert deop.settings["clip"]["pretrained"] is None
    # What rules are told: one file for each role, none where a system has no such input.
    trained = plan.input("build_system", "trained")
    assert trained(SimpleNamespace(key=deop.key)) == [f"{deop.inputs['trained']}/model.safetensors"]
    assert trained(SimpleNamespace(key=baseline.key)) == []
    evaluated = plan.inputs("table", made_by="evaluate")(SimpleNamespace(table="table3"))
    assert evaluated == sorted(table.inputs.values())
    assert plan.inputs("table", made_by="measure_speed")(SimpleNamespace(table="table3")) == []


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
    monkeypatch.setattr(pipeline, "WEIGHTS", tmp_path)
    (tmp_path / "resnet10t.json").write_text(json.dumps({"sha256": "00"}))
    config["clip"]["retrain"] = True
    config["variants"]["large"] = {}
    config["pretrain_clip"] |= {"grown_from": "deop-mini", "rounds": [{"images": 1000}]}
    with pytest.raises(
        ConfigError, match=r"pretrain_clip.grown_from: no weights are bundled for model 'deop-mini'"
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
    assert new_jobs(before, Plan(config, root)) == Asked(config, root).jobs(
        about=lambda shown: shown.experiment == "deop",
        without=("prepare_data", "learn_prompts", "train_proposals"),
    )


def test_what_a_multipass_system_is_trained_on_and_what_only_tests_it(root, config, edit):
    config["clip"]["retrain"] = True
    before = Plan(config, root)
    assert set(system_in(before, "table1", "simbaseline/es20/0").inputs) == {
        "data",
        "clip",
        "prompts",
        "trained",
    }
    # Templates in place of the learned prompt, in both streams.
    assert set(system_in(before, "table1", "zegformer/es20/0").inputs) == {"data", "clip", "trained"}
    # As the release has it, for the dataset that stands for VOC alone.
    weights = {
        name: system_in(before, "table1", f"simbaseline/{name}/0").settings["method"]["ensemble_weight"]
        for name in ("es171", "es20")
    }
    assert weights == {"es171": 0.8, "es20": 0.7}
    config["prompts"]["iterations"] += 1
    zegformer_again = Plan(config, root).tables["table1"].inputs["zegformer/es20/0"]
    assert zegformer_again == before.tables["table1"].inputs["zegformer/es20/0"]
    config["prompts"]["iterations"] -= 1
    # The ensemble is a matter of testing, the class head one of training.
    edit(root / "config/experiments.yaml", "experiments", "simbaseline", "ensemble_weight", to=0.6)
    changed = Asked(config, root).jobs(
        about=lambda shown: shown.experiment == "simbaseline",
        without=("prepare_data", "pretrain_clip", "learn_prompts"),
    )
    tested = {stage: count for stage, count in changed.items() if stage != "train_system"}
    assert new_jobs(before, Plan(config, root)) == tested
    edit(root / "config/experiments.yaml", "experiments", "simbaseline", "class_weight", to=2.0)
    assert new_jobs(before, Plan(config, root)) == changed != tested


def test_a_transferred_system_is_the_one_trained_for_its_own_dataset(root, config):
    config["clip"]["retrain"] = True
    plan = Plan(config, root)
    by_output = {job.output: job for job in plan.jobs.values()}
    for name in ("deop", "simbaseline"):
        at_home = by_output[plan.tables["table1"].inputs[f"{name}/es171/0"]]
        abroad = by_output[plan.tables["table2"].inputs[f"{name}/om59/0"]]
        changed = {role for role, path in abroad.inputs.items() if at_home.inputs[role] != path}
        assert (
            changed == {"data"}
            and by_output[abroad.inputs["data"]].settings["dataset"]["style"] == "openmoji"
        )
        assert abroad.settings["transfer"] == {"trained_on": "es171"} and "transfer" not in at_home.settings
    # As the release has it for datasets that a system was not trained on.
    weights = [
        by_output[plan.tables["table2"].inputs[f"simbaseline/{name}/0"]].settings["tested"]["ensemble_weight"]
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
    new = Asked(config, root).jobs(
        about=lambda shown: shown.experiment == "gps_larger", without=("prepare_data", "train_proposals")
    )
    assert new["learn_prompts"] == 1 and new_jobs(before, after) == new
    system = next(after.jobs[key] for key in jobs(after) - jobs(before) if key[0] == "build_system")
    assert system.settings["clip"]["model"] == "ViT-B-16"
    assert system.settings["method"]["severance"]["alpha"] == {"-2": 1, "-1": 0.25}
    config["variants"]["larger"] = {"prompts": {"lrr": 1}}
    with pytest.raises(ConfigError, match=r"config with variant 'larger': prompts: unknown key 'lrr'; valid"):
        Plan(config, root)
    config["variants"]["larger"] = {"seeds": {}}
    with pytest.raises(ConfigError, match=r"variants\.larger: unknown section 'seeds'; valid: clip"):
        Plan(config, root)


def test_a_network_with_templates_needs_no_learned_prompt(root, config):
    system = system_in(Plan(config, root), "tableS1", "baseline_imagenet/es171/0")
    assert set(system.inputs) == {"data", "proposals"} and "prompts" not in system.settings
    assert system.settings["method"]["templates"] == "imagenet"
    config["prompts"]["iterations"] += 1
    assert (system.stage, system.key) in jobs(Plan(config, root))


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
    assert new_jobs(before, after) == Asked(config, root).jobs(
        about=lambda shown: shown.trained == "es20", without=("prepare_data", "learn_prompts")
    )
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
    trained = [job for job in Plan(config, root).jobs.values() if "segmentation" in job.settings]
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
    monkeypatch.setattr(pipeline, "WEIGHTS", tmp_path)
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
    assert proposals and all(job.inputs["backbone"] == backbone.output for job in proposals)
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
    monkeypatch.setattr(pipeline, "WEIGHTS", tmp_path)
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
            plan = Plan(config, ROOT)
            assert {"table3", "photos3"} & plan.tables.keys()
            assert inputs_without_a_line(plan) == set()
            profiles.add(values["profile"])
    assert profiles >= {"mini", "tiny"}


def inputs_without_a_line(plan: Plan) -> set[tuple[str, str]]:
    """Stages and roles of inputs that no line of a rule asks Snakemake for."""
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    by_output = {job.output: job.stage for job in plan.jobs.values()}
    return {
        (job.stage, role)
        for job in plan.jobs.values()
        for role, path in job.inputs.items()
        if f'plan.input("{job.stage}", "{role}")' not in rules
        and f'plan.inputs("{job.stage}", made_by="{by_output[path]}")' not in rules
    }


def _overlay(values: dict, changes: dict) -> None:
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            _overlay(values[key], change)
        else:
            values[key] = change


def test_the_gap_of_a_claim_is_reported_from_seen_and_unseen_values(root, config):
    """ZS3Net on COCO-Stuff: 34.7 - 9.5, DeOP: 38.0 - 38.4."""
    job = Plan(config, root).named["claims"]["claims"]
    [entry] = [
        claim
        for claim in job.settings["claims"]["claims"]
        if (claim["metric"], claim["better"], claim["dataset"]) == ("gap", "zs3net", "es171")
    ]
    assert entry["worse"] == "deop" and entry["reported"] == pytest.approx(25.2 + 0.4)
