"""What lies where an output is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from deop.jobs import artifacts
from deop.jobs.artifacts import artifact
from deop.jobs.job import Job


@pytest.mark.faults("an unfinished folder holds files of others", "they are not published")
def test_what_others_left_in_an_unfinished_folder_is_not_published(tmp_path):
    output, partial = tmp_path / "network", tmp_path / "network.partial"
    job = Job(stage="toy", key="0" * 12, output=str(output))
    for name in ("junk.txt", "old/model.safetensors", "tensorboard/events", "state/checkpoint"):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(name)
    with artifact(job, resumes=("tensorboard",)) as workspace:
        assert (workspace.state / "checkpoint").exists()
        (workspace.path / "made.txt").touch()
    assert {path.name for path in output.iterdir()} == {"made.txt", "provenance.json", "tensorboard"}
    assert (output / "tensorboard/events").read_text() == "tensorboard/events"


@pytest.mark.faults("an unfinished folder holds files of others", "they are not published")
def test_label_maps_that_no_list_names_are_not_published(scenes, tmp_path, training):
    """Those of an interrupted preparation are gone on from, others removed."""
    import real_layouts

    from deop.data.prepare import prepare
    from deop.settings.datasets import dataset_settings

    real_layouts.write_coco_stuff(tmp_path / "raw")
    settings = dataset_settings("coco_stuff", "kind").model_validate(
        {"kind": "coco_stuff", "complete": False}
    )
    output = tmp_path / "coco"
    prepare(output, "coco", settings, tmp_path / "raw")
    before = {path.relative_to(output) for path in output.rglob("*.png")}
    junk = output / "labels/train/junk.png"
    junk.write_bytes(next(output.rglob("*.png")).read_bytes())
    prepare(output, "coco", settings, tmp_path / "raw")
    assert {path.relative_to(output) for path in output.rglob("*.png")} == before


@pytest.mark.parametrize("name", ["proposals", "proposals.partial"])
@pytest.mark.parametrize("link", [False, True])
def test_a_file_in_the_place_of_a_folder(tmp_path, training, run_stage, name, link):
    job = training()
    place = tmp_path / name
    if link:
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.write_text("mine")
    status, told = run_stage(job)
    assert status == 1 and told.count("\n") == 1 and f"deop: {place} is in the way" in told
    assert link or place.read_text() == "mine"
    assert Path(job.inputs["data"]).exists()


@pytest.mark.faults(
    "a training is killed when all steps are done and its results are written", "a rerun repeats no step"
)
@pytest.mark.parametrize("killed_in", ["folder_hashes", "flush_to_disk"])
def test_checkpoints_stay_until_results_are_on_disk(tmp_path, monkeypatch, killed_in):
    def die(_: Path) -> None:
        raise KeyboardInterrupt

    job = Job(stage="toy", key="0" * 12, output=str(tmp_path / "network"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), artifact(job) as workspace:
        (workspace.state / "checkpoint").touch()
        patch.setattr(artifacts, killed_in, die)
    with artifact(job) as workspace:
        assert (workspace.state / "checkpoint").exists()
    assert [path.name for path in (tmp_path / "network").iterdir()] == ["provenance.json"]
