"""A stage under several processes, as ``config/accelerate/gpus4.yaml`` has them, but on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deop.settings import EmojiScenes, Job, Vocabulary
from deop.stages import prepare_data

# What `accelerate launch` itself calls for several GPUs; for CPUs it wants MPI.
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
PROPOSALS = {
    "backbone": "resnet10t",
    "backbone_args": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "pretrained_backbone": False,
    "out_indices": [1, 2, 3],
    "queries": 4,
    "decoder_layers": 1,
    "width": 32,
    "ffn_width": 32,
    "heads": 2,
    "iterations": 3,
    "batch_size": 4,
    "augmentation": {"crop": 64, "scale": [1.0, 1.0], "flip": 0.0, "colour_jitter": 0.0},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    vocabulary = Vocabulary(things=("dog", "cow", "rabbit"), stuff=("grass",), unseen=("cow",))
    scenes = EmojiScenes(style="twemoji", vocabulary=vocabulary, train=12, val=2, image_size=64)
    settings = {"dataset": scenes.model_dump(mode="json")}
    prepare_data.run(Job(stage="prepare_data", key="d", output=str(path), settings=settings))
    return path


def train(folder: Path, dataset: Path, processes: int, iterations: int = 3) -> dict[str, torch.Tensor]:
    """Weights after ``iterations`` steps."""
    output = folder / f"proposals-{processes}-{iterations}"
    job = Job(
        stage="train_proposals",
        key="p",
        output=str(output),
        inputs={"data": str(dataset)},
        settings={"proposals": PROPOSALS | {"iterations": iterations}},
    )
    path = folder / f"{output.name}.json"
    path.write_text(job.model_dump_json())
    command = [*LAUNCH, str(processes), "-m", "deop", "train-proposals", str(path)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert {file.name for file in output.iterdir()} == {"model.safetensors", "provenance.json", "tensorboard"}
    return load_file(output / "model.safetensors")


@pytest.mark.slow
def test_two_processes_share_a_batch_and_publish_once(tmp_path, dataset):
    start, one, two = (train(tmp_path, dataset, *how) for how in ((1, 0), (1, 3), (2, 3)))
    assert not list(tmp_path.glob("*.partial"))
    learned = [name for name in start if "running" not in name and "num_batches" not in name]
    alone, shared = (
        torch.cat([(weights[name] - start[name]).flatten() for name in learned]) for weights in (one, two)
    )
    # Not the same, for batch norm sees half of the images at a time: equal weights would come of a single process.
    assert 0.5 < torch.cosine_similarity(alone, shared, dim=0) < 0.99
