"""The table writer, on evaluations made up here."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
import yaml

from deop.errors import DeopError
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.reporting import origin
from deop.stages import table

ROOT = Path(__file__).parents[2]
METRICS = ("pAcc", "hIoU", "seen", "unseen")
EVALUATED = (*METRICS, "mIoU", "mIoU_truth")
EXPERIMENTS = (
    "baseline",
    "baseline_plus",
    "baseline_plus_ps",
    "baseline_plus_cal",
    "deop",
    "zegformer",
    "simbaseline",
    "baseline_imagenet",
    "baseline_vild",
    "baseline_text",
    "baseline_visual",
    "spnet",
    "lseg",
    "zs3net",
    "cagnet",
    "openseg",
    "openseg_more",
)
PASSES, SPEED = 3.25, 41.26
MACHINE = {"device": "cpu (abacus)", "threads": 7}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def score(role: str, metric: str) -> float:
    """A made-up fraction that differs by experiment, dataset, seed and metric."""
    experiment, dataset, seed = role.split("/")
    place = EXPERIMENTS.index(experiment) * 8 + (dataset == "es20") * 4 + EVALUATED.index(metric)
    return 0.1 + 0.02 * place + 0.001 * int(seed) ** 2


def made_table(root: Path, monkeypatch, seeds: list[int], name: str = "table3", **provenance: object) -> Job:
    """A table as the configuration has it; its inputs are written below ``root``, the working directory."""
    root.mkdir(exist_ok=True)
    monkeypatch.chdir(root)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for dataset in config["datasets"].values():
        dataset["vocabulary"] = {"things": ["dog", "cow"], "unseen": ["cow"]}
    config["clip"] |= {"pretrained": "random", "retrain": False}  # no job of its own, no weights
    plan = Plan(config | {"seeds": seeds}, ROOT)
    job = plan.tables[name]
    settings = {each.output: each.settings for each in plan.jobs.values()}
    methods = {
        each.output: settings[each.inputs["system"]]["method"]
        for each in plan.jobs.values()
        if each.stage == "evaluate"
    }
    made = {"commit": COMMIT, "dirty": False, "version": "1.2.3", "wall_time_s": 30.0} | provenance
    for artifact in map(Path, job.settings["table"]["artifacts"]):
        if artifact.suffix != ".json":
            artifact.mkdir(parents=True)
            (artifact / "provenance.json").write_text(json.dumps(made))
    for role, path in job.inputs.items():
        if role.startswith("speed/"):
            systems = {name: {"images_per_s": SPEED} for name in EXPERIMENTS}
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(json.dumps({"systems": systems, "provenance": made | MACHINE}))
            continue
        metrics = {metric: score(role, metric) for metric in EVALUATED}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        result = {"metrics": metrics, "passes": PASSES, "per_class_iou": {}, "method": methods[path]}
        result["provenance"] = made
        Path(path).write_text(json.dumps(result))
    return job


def reported() -> dict[tuple[str, str], str]:
    with (ROOT / "config/reported.csv").open() as file:
        return {
            (line["row"], line["column"]): line["value"]
            for line in csv.DictReader(file)
            if line["table"] == "3"
        }


def markdown_rows(text: str) -> list[dict[str, str]]:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_csv_has_the_rows_and_columns_of_the_papers_table(tmp_path, monkeypatch):
    table.run(made_table(tmp_path, monkeypatch, [0]))
    lines = list(csv.DictReader(io.StringIO(Path("results/table3.csv").read_text())))
    columns = [f"{dataset}.{metric}" for dataset in ("es171", "es20") for metric in METRICS]
    assert list(lines[0]) == ["method", *columns, "profile", "seeds", "commit", "version", "configuration"]
    paper = dict.fromkeys(row for row, _ in reported())
    assert [line["method"] for line in lines] == list(paper)
    for line, experiment in zip(lines, EXPERIMENTS):
        for column in columns:
            dataset, metric = column.split(".")
            assert line[column] == f"{100 * score(f'{experiment}/{dataset}/0', metric):.1f}"
        assert (line["profile"], line["seeds"]) == ("mini", "0")
        assert (line["commit"], line["version"]) == (COMMIT[:12], "1.2.3")


def test_several_seeds_give_mean_and_standard_deviation(tmp_path, monkeypatch):
    table.run(made_table(tmp_path, monkeypatch, [0, 1, 2]))
    lines = list(csv.DictReader(io.StringIO(Path("results/table3.csv").read_text())))
    values = [100 * score(f"deop/es20/{seed}", "hIoU") for seed in range(3)]
    mean, deviation = f"{statistics.mean(values):.1f}", f"{statistics.stdev(values):.1f}"
    assert (lines[-1]["es20.hIoU"], lines[-1]["es20.hIoU.std"]) == (mean, deviation)
    assert lines[-1]["seeds"] == "0 1 2"
    text = Path("results/table3.md").read_text()
    measured = [row for row in markdown_rows(text) if row["values"] == "measured"]
    assert measured[-1]["es20 hIoU"] == f"{mean} ± {deviation}"
    assert "mean ± standard deviation of seeds 0, 1 and 2" in text


def test_markdown_shows_reported_values_apart_from_measured_ones(tmp_path, monkeypatch):
    table.run(made_table(tmp_path, monkeypatch, [0]))
    text = Path("results/table3.md").read_text()
    rows = markdown_rows(text)
    assert [row["values"] for row in rows] == ["measured", "*paper*"] * 5
    names = {"es171": "coco_stuff", "es20": "voc"}
    for measured, paper, experiment in zip(rows[::2], rows[1::2], EXPERIMENTS):
        assert measured["method"] == paper["method"]
        for dataset, name in names.items():
            for metric in METRICS:
                column = f"{dataset} {metric}"
                assert measured[column] == f"{100 * score(f'{experiment}/{dataset}/0', metric):.1f}"
                # Every reported number is in italics, no measured one is.
                assert paper[column] == f"*{reported()[paper['method'], f'{name}.{metric}']}*"
    for words in ("profile mini", "seed 0", "COCO-Stuff (es171 stands in for it)", f"commit {COMMIT[:12]}"):
        assert words in text
    assert "in the ground truth or in the prediction" in text


def test_notes_sum_the_wall_time_and_mark_uncommitted_code(tmp_path, monkeypatch):
    job = made_table(tmp_path, monkeypatch, [0], dirty=True)
    table.run(job)
    text = Path("results/table3.md").read_text()
    # 2 datasets, 2 prompts, 2 proposals, 8 trainings, 10 systems, 10 evaluations of half a minute each
    assert "wall time 0:17:00 (h:mm:ss), the sum over 34 jobs" in text
    assert (
        f"Made by deop 1.2.3, commit {COMMIT[:12]} with uncommitted changes; " in text
    )  # fp32 is not mentioned
    assert f",{COMMIT[:12]}-dirty," in Path("results/table3.csv").read_text()
    assert f"commit {COMMIT[:12]} with uncommitted changes" in Path("results/table3.tex").read_text()
    (
        Path(next(path for path in job.settings["table"]["artifacts"] if "proposals" in path))
        / "provenance.json"
    ).unlink()
    table.run(job)
    assert "wall time 0:16:30 (h:mm:ss), the sum over 33 of 34 jobs" in Path("results/table3.md").read_text()


def test_notes_say_what_the_numbers_rest_on_and_who_wrote_them_down(tmp_path, monkeypatch):
    job = made_table(tmp_path, monkeypatch, [0], dirty_inputs=["checkpoints/proposals/es20-0"])
    here = {"commit": "f" * 40, "dirty": True}
    monkeypatch.setattr(origin, "code_version", lambda: here)
    state = {"files": {"config/config.yaml": "modified", "a_b.yaml": "untracked"}, "overrides": {"x.y": 3}}
    monkeypatch.setenv("DEOP_CONFIGURATION", json.dumps(state))
    table.run(job)
    text = Path("results/table3.md").read_text()
    assert "1 of their inputs were made with uncommitted changes" in text
    assert f"; written by commit {'f' * 12} with uncommitted changes; wall time" in text
    differs = "not as committed: config/config.yaml modified, a_b.yaml untracked, x.y=3 given by --config"
    assert f"\n\nConfiguration: {differs}.\n" in text
    assert differs.replace("_", r"\_") in Path("results/table3.tex").read_text()
    lines = list(csv.DictReader(Path("results/table3.csv").open()))
    assert {line["configuration"] for line in lines} == {differs}
    assert json.loads(Path("results/table3.json").read_text())["configuration"] == differs


def test_outside_a_checkout_no_commit_is_known(tmp_path, monkeypatch):
    job = made_table(tmp_path, monkeypatch, [0], commit=None, dirty=None)
    monkeypatch.setattr(origin, "code_version", lambda: {"commit": None, "dirty": None})
    table.run(job)
    text = Path("results/table3.md").read_text()
    assert "Made by deop 1.2.3, no commit known; wall time" in text
    assert "Configuration: not recorded." in text


def test_notes_say_the_precision_where_it_is_not_full(tmp_path, monkeypatch):
    job = made_table(tmp_path, monkeypatch, [0], precision="bf16")
    table.run(job)
    assert "computed in bf16; wall time" in Path("results/table3.md").read_text()
    path = Path(next(path for role, path in job.inputs.items() if not role.startswith("speed/")))
    result = json.loads(path.read_text())
    result["provenance"]["precision"] = "fp32"
    path.write_text(json.dumps(result))
    table.run(job)
    assert "computed in bf16, fp32; wall time" in Path("results/table3.md").read_text()


def test_json_names_the_key_and_metrics_are_one_file_a_row(tmp_path, monkeypatch):
    job = made_table(tmp_path, monkeypatch, [0])
    table.run(job)
    assert json.loads(Path("results/table3.json").read_text())["key"] == job.key
    files = {path.stem: json.loads(path.read_text()) for path in Path("results/metrics/table3").iterdir()}
    assert set(files) == set(EXPERIMENTS[:5])
    assert files["deop"]["es20"]["hIoU"] == pytest.approx(score("deop/es20/0", "hIoU"), abs=1e-4)


def test_latex_is_a_booktabs_table_with_every_row(tmp_path, monkeypatch):
    table.run(made_table(tmp_path, monkeypatch, [0]))
    text = Path("results/table3.tex").read_text()
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\multicolumn{4}{c}{es171}"):
        assert rule in text
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 10 and all(line.count("&") == 9 for line in body)


def test_systems_that_are_not_run_say_so_and_passes_are_no_percentages(tmp_path, monkeypatch):
    job = made_table(tmp_path, monkeypatch, [0, 1], "table1")
    other = {"label": "Other", "experiment": None, "decoupled": False, "reported": {"coco_stuff.hIoU": 15.0}}
    job.settings["table"]["rows"].insert(0, other)
    table.run(job)
    lines = {line["method"]: line for line in csv.DictReader(Path("results/table1.csv").open())}
    assert list(lines) == ["Other", "SPNet", "LSeg", "ZS3Net", "CaGNet", "ZegFormer", "SimBaseline", "DeOP"]
    assert {name: line["decoupled"] for name, line in lines.items()} == {
        **dict.fromkeys(("Other", "SPNet", "LSeg", "ZS3Net", "CaGNet"), "no"),
        **dict.fromkeys(("ZegFormer", "SimBaseline", "DeOP"), "yes"),
    }
    assert lines["Other"]["es171.hIoU"] == lines["Other"]["es20.passes"] == "not run"
    assert lines["DeOP"]["es20.passes"] == f"{PASSES:.1f}" and lines["DeOP"]["es20.FPS"] == f"{SPEED:.1f}"
    assert "es20.passes.std" in lines["DeOP"] and "es20.FPS.std" not in lines["DeOP"]
    mean = 50 * sum(score(f"deop/es20/{seed}", "hIoU") for seed in (0, 1))
    assert lines["DeOP"]["es20.hIoU"] == f"{mean:.1f}"
    text = Path("results/table1.md").read_text()
    measured, paper = markdown_rows(text)[:2]
    # What others reported stands beside it, as theirs.
    assert measured["es171 hIoU"] == "not run" and paper["es171 hIoU"] == "*15.0*"
    assert "Speed was measured on cpu (abacus), threads: 7." in text
    assert "not implemented here" in text and "how many pictures of an image CLIP is shown" in text
    assert {path.stem for path in Path("results/metrics/table1").iterdir()} == {
        "spnet",
        "lseg",
        "zs3net",
        "cagnet",
        "zegformer",
        "simbaseline",
        "deop",
    }


def test_notes_say_which_prompts_each_row_used(tmp_path, monkeypatch):
    table.run(made_table(tmp_path, monkeypatch, [0], "tableS1"))
    assert (
        "Text prompts: the 80 ImageNet templates (ImageNet templates); the 14 ViLD templates (ViLD templates); learned "
        "offline (Neither (text learned offline), Visual prompts); learned offline and then end to end (Text prompts, "
        "Text and visual prompts)."
    ) in Path("results/tableS1.md").read_text()
    table.run(made_table(tmp_path / "other", monkeypatch, [0], "table1"))
    prompts = json.loads(Path("results/table1.json").read_text())["text_prompts"]
    assert 'the template "a picture of {}." (ZegFormer); learned offline (SimBaseline)' in prompts
    assert "CLIP's text encoder" in prompts
    assert r"a picture of \{\}." in Path("results/table1.tex").read_text()


def test_undefined_metrics_stay_empty(tmp_path, monkeypatch):
    job = made_table(tmp_path, monkeypatch, [0])
    path = Path(job.inputs["deop/es20/0"])
    evaluation = json.loads(path.read_text())
    evaluation["metrics"]["unseen"] = None
    path.write_text(json.dumps(evaluation))
    table.run(job)
    assert list(csv.DictReader(Path("results/table3.csv").open()))[-1]["es20.unseen"] == ""
    assert markdown_rows(Path("results/table3.md").read_text())[-2]["es20 unseen"] == "–"
    # JSON has no NaN.
    values = json.loads(Path("results/table3.json").read_text(), parse_constant=pytest.fail)
    assert values["methods"]["DeOP"]["es20"]["unseen"] is None
    json.loads(Path("results/metrics/table3/deop.json").read_text(), parse_constant=pytest.fail)


def test_a_dataset_that_stands_for_none_of_the_papers_has_no_values_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {"commit": COMMIT, "dirty": False, "version": "1.2.3", "wall_time_s": 30.0}
    result = {"metrics": {"mIoU": 0.25, "hIoU": None}, "method": {"method": "deop"}, "provenance": made}
    Path("deop.json").write_text(json.dumps(result))
    datasets = [
        {"name": "park", "images": "photographs", "place": "park", "miou": "occurring", "trained_on": "es171"}
    ]
    settings = {
        "caption": "Mine",
        "profile": "mini",
        "seeds": [0],
        "datasets": datasets,
        "metrics": ["mIoU", "hIoU"],
        "rows": [{"label": "DeOP", "experiment": "deop", "reported": {}}],
    }
    inputs = {"deop/park/0": "deop.json"}
    job = Job(stage="table", key="k", output="results/park.json", inputs=inputs, settings={"table": settings})
    table.run(job)
    (line,) = csv.DictReader(Path("results/park.csv").open())
    assert (line["park.mIoU"], line["park.hIoU"]) == ("25.0", "")
    text = Path("results/park.md").read_text()
    assert [row["values"] for row in markdown_rows(text)] == ["measured"] and "paper" not in text
    assert "The systems tested on park were trained on es171" in text


def test_an_evaluation_without_a_metric_is_named(tmp_path, monkeypatch):
    job = made_table(tmp_path, monkeypatch, [0])
    path = Path(job.inputs["deop/es20/0"])
    evaluation = json.loads(path.read_text())
    del evaluation["metrics"]["hIoU"]
    path.write_text(json.dumps(evaluation))
    with pytest.raises(DeopError, match=f"{path} has no metric 'hIoU'; it has: pAcc, seen, unseen"):
        table.run(job)


def test_notes_of_a_table_are_printed_and_both_miou_conventions_where_classes_are_many(tmp_path, monkeypatch):
    """Table 2: the reported numbers that measured ones do not compare with, and a second mIoU of two datasets."""
    table.run(made_table(tmp_path, monkeypatch, [0], "table2"))
    lines = {line["method"]: line for line in csv.DictReader(Path("results/table2.csv").open())}
    two = [column for column in lines["DeOP"] if column.startswith(("om459.", "om847."))]
    assert two == ["om459.mIoU", "om459.mIoU_truth", "om847.mIoU", "om847.mIoU_truth"]
    assert "om59.mIoU_truth" not in lines["DeOP"]
    assert lines["LSeg"]["om847.mIoU_truth"] == f"{100 * score('lseg/om847/0', 'mIoU_truth'):.1f}"
    text = Path("results/table2.md").read_text()
    assert (
        "Pascal-5i" in text
        and "mIoU_truth: mIoU averaged over classes that occur in the ground truth alone" in text
    )
    assert "Pascal-5i" in Path("results/table2.tex").read_text()
