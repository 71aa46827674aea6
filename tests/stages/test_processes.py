"""A stage under several processes, as ``config/accelerate/gpus4.yaml`` has them, but on CPUs."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deop.data.emoji.settings import EmojiScenes
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.settings.datasets import Vocabulary
from deop.settings.files import read_profile
from deop.stages import prepare_data

ROOT = Path(__file__).parents[2]
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

FIT = textwrap.dedent(
    """
    import sys
    import torch
    from torch import nn
    from deop.jobs.job import Job
    from deop.jobs.artifacts import artifact
    from deop.training.loop import fit, make_accelerator
    from deop.training.optim import cosine
    from deop.models.weight_files import save_weights

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
            self.register_buffer("scale", torch.ones(1))  # what processes synchronise in every forward pass
        def forward(self, batch):
            return {"error": ((self.layer(batch) - batch.sum(1, keepdim=True)) ** 2).mean()}

    class Batches(torch.utils.data.Dataset):
        def __getitem__(self, step):
            batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            if step == 4:
                batch[5] = float("nan")  # of two processes, the second has it, in the first of two parts
            return batch[accelerator.process_index :: accelerator.num_processes]
        def __len__(self):
            return 12

    torch.manual_seed(0)
    step, accelerator = Step(), make_accelerator()
    with artifact(Job(stage="toy", key="0" * 12, output=sys.argv[1])) as workspace:
        fit(step, Batches(), optimizer=torch.optim.SGD(step.parameters(), lr=0.1), schedule=cosine(12, 2),
            iterations=12, seed=0, workspace=workspace, accelerator=accelerator, description="toy", clip_grad_norm=0.5,
            skip_not_finite=1, micro_batch=4)
        save_weights(step.state_dict(), workspace.path)
    """
)

# The gradients of one batch, however it is divided. Its samples differ in how much of them is labelled.
DIVIDED = textwrap.dedent(
    """
    import sys
    import torch
    from safetensors.torch import save_file
    from deop.models.clip import load_clip
    from deop.data.segmentation import HIDDEN, IGNORE
    from deop.methods.deop import DeOP
    from deop.methods.simbaseline import SimBaseline
    from deop.models.prompts import TextPrompt
    from deop.models.proposals import ProposalNetwork
    from deop.settings.schedule import Augmentation
    from deop.settings.stages import ClassTerm, Segmentation
    from deop.settings.methods import AnchorSettings, DeOPSettings, SimBaselineSettings
    from deop.training.accumulation import accumulate
    from deop.training.loop import make_accelerator
    from deop.stages.train_proposals import ClassLoss, ProposalStep
    from deop.stages.train_system import SystemStep

    NAMES = ["dog", "cow", "grass", "sky"]

    def proposals():
        return ProposalNetwork(
            backbone="resnet10t", backbone_args={"channels": [8, 8, 16, 16], "stem_width": 8},
            pretrained_backbone=False, frozen_batch_norm=True, out_indices=[1, 2, 3], queries=3, decoder_layers=2,
            width=32, ffn_width=32, heads=2,
        )

    def network(kind):
        torch.manual_seed(0)
        if kind == "proposals":
            text = torch.nn.functional.normalize(torch.randn(len(NAMES), 16), dim=-1)
            return ProposalStep(proposals(), ClassLoss(ClassTerm(), 32, text, logit_scale=10.0))
        clip = load_clip("deop-mini", None)
        prompt = TextPrompt(2, clip.text_width, clip.embed_dim)
        if kind == "multipass":
            system = SimBaseline(clip, proposals(), SimBaselineSettings(), seen_names=NAMES, text_prompt=prompt)
        else:
            anchors = AnchorSettings(kind="query", heads=2, ffn_width=16, dropout=0.0)
            settings = DeOPSettings(visual_prompts=True, text_prompts="online", anchors=anchors)
            loss = Segmentation(iterations=1, augmentation=Augmentation(crop=48), loss=kind)
            system = DeOP(clip, proposals(), prompt, settings, queries=3, loss=loss)
        return SystemStep(system, NAMES)

    def batch():
        generator = torch.Generator().manual_seed(1)
        # Sampled coarsely, so that there are segments; the images have 4, 1, 3, none, 2 and 4 of them, and the
        # last two again 4.
        labels = torch.randint(len(NAMES), (8, 3, 4), generator=generator)
        labels[1], labels[2], labels[3], labels[4] = 2, labels[2].clamp(max=2), HIDDEN, labels[4].clamp(max=1)
        labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
        labels[0, :40], labels[2, :, :9], labels[5, 20:24] = HIDDEN, IGNORE, HIDDEN
        return {"image": torch.rand(8, 3, 48, 64, generator=generator), "label": labels}

    accelerator = make_accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    share = {name: value[rank::world].to(accelerator.device) for name, value in batch().items()}
    for kind in ("proposals", "labelled", "release", "multipass"):
        for micro_batch in (None, 1, 2):
            step = network(kind).train()
            ready = accelerator.prepare(step)
            losses = accumulate(ready, share, micro_batch, accelerator, step.denominators)
            found = {f"loss/{k}": v.reshape(1) for k, v in accelerator.reduce(losses, reduction="mean").items()}
            found |= {k: v.grad for k, v in step.named_parameters() if v.grad is not None}
            if accelerator.is_main_process:
                save_file({k: v.contiguous() for k, v in found.items()}, f"{sys.argv[1]}-{kind}-{micro_batch}")
    accelerator.end_training()
    """
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    vocabulary = Vocabulary(things=("dog", "cow", "rabbit"), stuff=("grass",), unseen=("cow",))
    scenes = EmojiScenes(style="twemoji", vocabulary=vocabulary, train=12, val=2, image_size=64)
    settings = {"dataset": scenes.model_dump(mode="json")}
    prepare_data.run(Job(stage="prepare_data", key="d", output=str(path), settings=settings))
    return path


def launch(processes: int, *arguments: str) -> None:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = [*LAUNCH, str(processes), *arguments]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


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
    launch(processes, "-m", "deop", "train-proposals", str(path))
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


@pytest.mark.faults(
    "the loss of a step is not finite, and `skip_not_finite` allows it",
    "the step is left out, in all processes; the provenance has the number of such steps",
)
@pytest.mark.slow
def test_gradients_of_processes_are_averaged(tmp_path, injected):
    """Without batch norm, two processes with half a batch each learn what one learns from all of it.

    Both leave out a step in which the loss of one of them is not finite.
    """
    injected(2)
    script = tmp_path / "fit.py"
    script.write_text(FIT)
    weights = []
    for processes in (1, 2):
        launch(processes, str(script), str(tmp_path / f"fit-{processes}"))
        weights.append(load_file(tmp_path / f"fit-{processes}/model.safetensors"))
        provenance = json.loads((tmp_path / f"fit-{processes}/provenance.json").read_text())
        assert provenance["skipped_steps"] == 1
    one, two = weights
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_division_of_a_batch_changes_neither_losses_nor_gradients(tmp_path):
    """One process, two or four, all of their images at once, two or one: to float tolerance, the same."""
    script = tmp_path / "divided.py"
    script.write_text(DIVIDED)
    for processes in (1, 2, 4):
        launch(processes, str(script), str(tmp_path / str(processes)))
    for kind in ("proposals", "labelled", "release", "multipass"):
        whole = load_file(tmp_path / f"1-{kind}-None")
        assert sum(name.startswith("loss/") for name in whole) == (
            3 if kind in ("proposals", "multipass") else 2
        )
        for division in ("1-{}-1", "1-{}-2", "2-{}-None", "2-{}-1", "2-{}-2", "4-{}-None", "4-{}-1"):
            divided = load_file(tmp_path / division.format(kind))
            assert divided.keys() == whole.keys()
            for name, value in whole.items():
                difference = float((divided[name] - value).abs().max())
                # Sums in another order. Some gradients, such as of the biases of keys, are zero but for rounding.
                assert difference < 1e-4 * float(value.abs().max()) + 1e-6, f"{division} {name}: {difference}"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["deop", "simbaseline"])
def test_networks_that_learn_in_part_are_trained_by_two_processes(tmp_path, monkeypatch, method):
    """DeOP with all its parts, SimBaseline with its class head; each process adds up the gradients of two parts."""
    values = read_profile(ROOT, ROOT / "config/tiny.yaml")
    values["clip"] |= {"retrain": False, "pretrained": "random"}
    values["pretrain_backbone"] |= {"retrain": False}
    values["proposals"] |= {"pretrained_backbone": False, "batch_size": 4}
    values["segmentation"] |= {"batch_size": 4}
    values["resources"]["train_system"]["micro_batch"] = 1
    plan = Plan(values, ROOT)
    trained = [job for job in plan.jobs.values() if job.stage == "train_system" and "es171" in job.output]
    of_method = [job for job in trained if job.settings["method"]["method"] == method]
    job = next(job for job in of_method if method != "deop" or _whole(job.settings["method"]))
    monkeypatch.chdir(tmp_path)
    for path in job.inputs.values():
        _make(next(each for each in plan.jobs.values() if each.output == path), plan)
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    launch(2, "-m", "deop", "train-system", str(file))
    assert load_file(tmp_path / job.output / "model.safetensors")


@pytest.fixture
def waiting(tmp_path):
    """A launch of two processes at a job that another process is at; the lock on it, and the job's output."""
    output = tmp_path / "proposals"
    job = Job(stage="train_proposals", key="p", output=str(output), inputs={"data": str(tmp_path / "none")})
    path = tmp_path / "job.json"
    path.write_text(job.model_dump_json())
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        launched = subprocess.Popen(
            [*LAUNCH, "2", "-m", "deop", "train-proposals", str(path)],
            env=os.environ | {"ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        said = ""
        while "another process is at" not in said and launched.poll() is None:
            said = launched.stderr.readline()
        yield launched, lock, output
        launched.kill()
        launched.wait()


@pytest.mark.faults(
    "a launch of several processes waited for another that has done the job", "all processes leave"
)
@pytest.mark.slow
def test_all_processes_of_a_launch_leave_a_job_that_another_has_done(waiting):
    """Were it the first alone, the others would go on, here to data that are not there, and else wait for it."""
    launched, lock, output = waiting
    output.mkdir()
    (output / "model.safetensors").touch()
    fcntl.flock(lock, fcntl.LOCK_UN)
    told = launched.communicate(timeout=120)[1]
    assert launched.returncode == 0, told
    assert [path.name for path in output.iterdir()] == ["model.safetensors"]


@pytest.mark.faults("the first of several processes dies while the others wait for it", "they end as well")
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_first_process_that_dies_while_it_waits_ends_the_launch(waiting):
    launched, _, _ = waiting
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    environments = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children}
    (first,) = (pid for pid, variables in environments.items() if b"RANK=0" in variables)
    os.kill(int(first), signal.SIGKILL)
    launched.communicate(timeout=120)
    assert launched.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


DECIDE = """
import os, sys
from deop.errors import DeopError
from deop.jobs.ranks import decided_by_first
try:
    print(decided_by_first(lambda: os._exit(3) if sys.argv[1] == "dies" else sys.argv[1] == "made"))
except DeopError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "made",
        pytest.param(
            "dies",
            marks=pytest.mark.faults(
                "the first of several processes dies while the others wait for it", "they end as well"
            ),
        ),
    ],
)
def test_a_decision_reaches_processes_that_were_started_without_a_launcher(first):
    """Then the first process itself serves what the others ask; they neither miss its answer nor wait forever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DECIDE, first],
            env=os.environ | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=120)[0].strip() for process in processes]
    if first == "made":
        assert told == ["True", "True"]
    else:
        assert told[0] == "" and "the first process of this launch ended" in told[1]


def _whole(network: dict) -> bool:
    return (
        network["visual_prompts"]
        and network["anchors"]["kind"] == "query"
        and network["severance"]["kind"] == "gps"
    )


def _make(job: Job, plan: Plan) -> None:
    """Runs a job here, after those that it rests on."""
    for path in job.inputs.values():
        _make(next(each for each in plan.jobs.values() if each.output == path), plan)
    if not Path(job.output).exists():
        importlib.import_module(f"deop.stages.{job.stage}").run(job)
