"""Files of weights that bring code: wherever weights are read, none of it runs."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from deop.errors import DeopError
from deop.jobs.artifacts import Workspace
from deop.methods.builder import build_proposals
from deop.models.clip import load_clip
from deop.models.weight_files import checked_weights, load_learned, read_weights
from deop.settings.stages import Proposals
from deop.tools.import_authors import import_checkpoint
from deop.training.loop import fit, make_accelerator
from deop.utils.files import file_hash

MARKER = "code-has-run"


class Touch:
    """Unpickled, it makes a folder in the working directory."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (MARKER,)


class Scripted(torch.nn.Module):
    """Loaded by torch.jit.load, it writes a file to the working directory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]
        torch.save(state[0], "code-has-run")


def saved(path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2), "more": Touch()}}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Touch()}))


def with_a_code_folder(path: Path) -> None:
    saved(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/code/x.py", "")


def like_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Touch(), protocol=2))
        archive.writestr("archive/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("archive/code/x.py", "")


def torchscript(path: Path) -> None:
    torch.jit.script(Scripted()).save(str(path))


CRAFTED = {
    each.__name__: each for each in (saved, plain_pickle, with_a_code_folder, like_torchscript, torchscript)
}


def as_clip(path: Path, monkeypatch) -> None:
    load_clip("deop-mini", str(path))


def as_clip_of_a_tag(path: Path, monkeypatch) -> None:
    monkeypatch.setattr("open_clip.download_pretrained", lambda *arguments, **named: str(path))
    load_clip("ViT-B-16", "openai")


def proposals(pretrained: str | bool) -> None:
    settings = {
        "backbone": "resnet10t",
        "pretrained_backbone": pretrained,
        "out_indices": [1, 2, 3],
        "queries": 2,
        "decoder_layers": 1,
        "width": 32,
        "ffn_width": 32,
        "heads": 2,
        "iterations": 1,
        "augmentation": {"crop": 64},
    }
    build_proposals(Proposals.model_validate(settings))


def as_backbone(path: Path, monkeypatch) -> None:
    proposals(str(path))


def as_backbone_that_timm_downloads(path: Path, monkeypatch) -> None:
    def download(repo_id: str, filename: str, **named: object) -> str:
        if filename.endswith(".safetensors"):
            raise huggingface_hub.errors.EntryNotFoundError("no such file")
        return str(path)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    proposals(True)


def as_release_of_the_authors(path: Path, monkeypatch) -> None:
    import_checkpoint(path, path.with_name("imported"))


def as_weights_of_an_earlier_stage(path: Path, monkeypatch) -> None:
    weights = Path(shutil.copy(path, path.with_name("model.safetensors")))
    path.with_name("provenance.json").write_text(json.dumps({"sha256": file_hash(weights)}))
    load_learned(torch.nn.Linear(2, 2), checked_weights(path.parent))


def as_checkpoint_to_resume_from(path: Path, monkeypatch) -> None:
    workspace = Workspace(path.with_name("training"))
    workspace.state.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, workspace.state / f"checkpoint-000000001-{file_hash(path)}.pt")
    layer = torch.nn.Linear(2, 2)
    fit(
        layer,
        torch.utils.data.TensorDataset(torch.zeros(2, 2)),
        optimizer=torch.optim.SGD(layer.parameters(), lr=0.1),
        schedule=lambda step: 1.0,
        iterations=2,
        seed=0,
        workspace=workspace,
        accelerator=make_accelerator(),
        description="toy",
    )


@pytest.mark.parametrize("crafted", CRAFTED)
def test_the_crafted_files_run_code_if_they_are_read_without_care(
    tmp_path, monkeypatch, crafted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    CRAFTED[crafted](path)
    if crafted == "torchscript":
        torch.jit.load(str(path))
    elif crafted == "like_torchscript":
        pickle.loads(zipfile.ZipFile(path).read("archive/data.pkl"))
    else:
        with contextlib.suppress(Exception):  # what comes after the code has run
            torch.load(path, weights_only=False)
    assert Path(MARKER).exists()


@pytest.mark.faults("a file of weights brings code", "none of it runs, and the file is refused by name")
@pytest.mark.parametrize("crafted", CRAFTED)
@pytest.mark.parametrize(
    "reader",
    [
        as_clip,
        as_clip_of_a_tag,
        as_backbone,
        as_backbone_that_timm_downloads,
        as_release_of_the_authors,
        as_weights_of_an_earlier_stage,
        as_checkpoint_to_resume_from,
    ],
)
def test_no_code_of_a_file_runs(
    tmp_path: Path, monkeypatch, reader: Callable, crafted: str, injected
) -> None:
    injected(2)
    monkeypatch.chdir(tmp_path)
    for suffix in (".pt", ".bin"):
        path = tmp_path / f"weights{suffix}"
        CRAFTED[crafted](path)
        with pytest.raises(
            DeopError, match=r"weights\.|model\.safetensors|checkpoint-000000001-|timm's weights"
        ):
            reader(path, monkeypatch)
        assert not Path(MARKER).exists()


class Parts(torch.nn.Module):
    """What a TorchScript archive may hold: nested modules, a shared tensor, half precision, attributes beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)])
        self.shared = self.layers[0].weight
        self.scale = torch.nn.Parameter(torch.randn(2, 2).half())
        self.register_buffer("count", torch.tensor(7))
        self.mask, self.sizes = torch.ones(3, 3), {"a": [1, 2]}

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, list[int]]]:
        return self.layers[1](self.layers[0](x)) @ self.mask, self.sizes


def test_torchscript_archives_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "archive.pt"
    torch.jit.script(Parts()).save(str(path))
    expected, found = torch.jit.load(str(path)).state_dict(), read_weights(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
