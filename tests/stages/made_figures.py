"""Made-up evaluations, tables of them, and what a plot of them shows: for tests of figures."""

from __future__ import annotations

import json
import random
from pathlib import Path

from deop.jobs.job import Job
from deop.reporting.figures import FigureSettings, draw_figure

METRICS = ("pAcc", "mIoU", "hIoU", "seen", "unseen")
SPEEDS = {"simbaseline": 6.25, "deop": 28.5, "deop_large": 11.0}
PROVENANCE = {"commit": "0123456789abcdef", "dirty": False, "version": "1.2.3", "wall_time_s": 3.0}
DATASETS = {
    name: {
        "name": name,
        "images": "generated EmojiScenes scenes, Twemoji artwork",
        "paper": paper,
        "paper_title": title,
        "place": f"{title} ({name} stands in for it)",
        "stand_in": True,
        "miou": "occurring",
    }
    for name, paper, title in (
        ("es171", "coco_stuff", "COCO-Stuff"),
        ("es20", "voc", "PASCAL VOC 2012"),
        ("es59", "pc59", "PASCAL Context"),
    )
}
TABLES = {
    "ablation": {
        "caption": "Parts",
        "datasets": [DATASETS["es171"], DATASETS["es20"]],
        "metrics": ["hIoU", "seen"],
        "rows": [
            {"label": "Baseline", "experiment": "baseline", "reported": {"coco_stuff.hIoU": 7.0}},
            {"label": "Other", "reported": {"coco_stuff.hIoU": 15.0, "voc.hIoU": 28.7, "pc59.hIoU": 19.0}},
            {"label": "DeOP", "experiment": "deop", "reported": {"coco_stuff.hIoU": 38.2, "voc.hIoU": 80.8}},
        ],
        "artifacts": [],
    },
    "speeds": {
        "caption": "Comparison with other systems",
        "datasets": [DATASETS["es171"]],
        "metrics": ["hIoU", "FPS"],
        "rows": [
            {"label": "SimBaseline", "experiment": "simbaseline", "reported": {"coco_stuff.hIoU": 37.8}},
            {
                "label": "DeOP",
                "experiment": "deop",
                "reported": {"coco_stuff.hIoU": 38.2, "coco_stuff.FPS": 4.4},
            },
            {"label": "CaGNet", "reported": {"coco_stuff.hIoU": 18.2}},
        ],
        "artifacts": [],
    },
}
TABLES["across"] = TABLES["ablation"] | {"datasets": list(DATASETS.values()), "metrics": ["hIoU"]}
TABLES["large"] = TABLES["speeds"] | {
    "caption": "A larger CLIP",
    "rows": [{"label": "DeOP", "experiment": "deop_large", "reported": {}}],
}


def score(experiment: str, dataset: str, seed: int, metric: str) -> float:
    """A made-up fraction, the same whenever it is asked for."""
    return random.Random(f"{experiment} {dataset} {seed} {metric}").uniform(0.05, 0.9)


def made_evaluation(path: Path, classes: int = 6) -> str:
    """Writes an evaluation named ``<experiment>-<dataset>-<seed>.json`` and its confusion; the last third is unseen."""
    experiment, dataset, seed = path.stem.split("-")
    names = [f"class {index}" for index in range(classes)]
    chance = random.Random(path.stem)
    evaluation = {
        "metrics": {metric: score(experiment, dataset, int(seed), metric) for metric in METRICS},
        "passes": 1.0,
        # Class 0 never occurs.
        "per_class_iou": {
            name: chance.betavariate(1, 2) if index else None for index, name in enumerate(names)
        },
        "unseen": names[-(classes // 3) :],
        "provenance": PROVENANCE,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation))
    lines = ["image,truth,predicted,pixels"]
    for image in range(20):
        for truth in chance.sample(range(1, classes), 4):
            predicted = chance.sample(range(classes), min(5, classes))
            lines += [f"{image},{truth},{label},{chance.randint(1, 900)}" for label in predicted]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    return str(path)


def made_job(root: Path, kind: str, tables=(), metrics=(), seeds=(0, 1, 2), experiments=(), classes=6) -> Job:
    """A figure's job whose inputs are written below ``root``."""
    settings: dict = {"kind": kind, "title": "A figure", "profile": "mini", "seeds": list(seeds)}
    inputs = {}

    def evaluation(experiment: str, dataset: str, seed: int) -> str:
        return made_evaluation(root / f"evaluations/{experiment}-{dataset}-{seed}.json", classes)

    if tables:
        settings |= {"metrics": list(metrics), "tables": {}}
    for name in tables:
        table = TABLES[name] | {"profile": "mini", "seeds": list(seeds)}
        settings["tables"][name] = table
        run = [row["experiment"] for row in table["rows"] if "experiment" in row]
        for dataset in (dataset["name"] for dataset in table["datasets"]):
            for experiment in run:
                for seed in seeds:
                    inputs[f"{name}/{experiment}/{dataset}/{seed}"] = evaluation(experiment, dataset, seed)
            if "FPS" in table["metrics"]:
                systems = {experiment: {"images_per_s": SPEEDS[experiment]} for experiment in run}
                made = PROVENANCE | {"device": "cpu (abacus)", "threads": 7}
                path = root / f"speed-{name}-{dataset}.json"
                path.write_text(json.dumps({"systems": systems, "provenance": made}))
                inputs[f"{name}/speed/{dataset}"] = str(path)
    if experiments:
        settings["rows"] = [{"label": name.upper(), "experiment": name} for name in experiments]
        settings["dataset"] = DATASETS["es171"]
        for experiment in experiments:
            for seed in seeds:
                inputs[f"{experiment}/es171/{seed}"] = evaluation(experiment, "es171", seed)
    output = str(root / "results/figures/made.json")
    return Job(stage="figure", key="abc123", output=output, inputs=inputs, settings={"figure": settings})


def drawn(job: Job):
    """The figure of a job, and all its text."""
    settings = FigureSettings.model_validate(job.settings["figure"])
    evaluations = {role: json.loads(Path(path).read_text()) for role, path in job.inputs.items()}
    made = draw_figure(settings, evaluations, job.inputs)
    text = [item.get_text() for item in made.texts]
    text += [item.get_text() for legend in made.legends for item in legend.get_texts()]
    return made, " ".join(" ".join(text).split())


def percentages(experiment: str, dataset: str, metric: str, seeds=(0, 1, 2)) -> list[float]:
    return [100 * score(experiment, dataset, seed, metric) for seed in seeds]


def marks(axis, marker: str) -> list[tuple[float, float]]:
    """The points drawn with a marker."""
    return [tuple(point) for line in axis.lines if line.get_marker() == marker for point in line.get_xydata()]


def error_bars(axis, direction: int) -> list[tuple[float, float]]:
    """Centre and half-length of all error bars in x (0) or y (1)."""
    ends = [
        segment[:, direction]
        for container in axis.containers
        if hasattr(container, "has_xerr")
        for lines in container.lines[2]
        for segment in lines.get_segments()
    ]
    return [((low + high) / 2, (high - low) / 2) for low, high in ends]
