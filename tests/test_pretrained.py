"""Weights from files and downloads: what a user reads where they cannot be had."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from deop.errors import DeopError
from deop.models.clip import DenseCLIP, load_clip
from deop.models.proposals import ProposalNetwork


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers every request with the server's ``status``, in the hub's way for a gated repository."""

    def do_HEAD(self) -> None:
        self.send_response(self.server.status)
        if self.server.status in (401, 403):
            self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A hub on this machine that has nothing; where downloads are kept is ``tmp_path / "cache"``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.status = 404
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server.cache = tmp_path / "cache"
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.faults(
    "weights or a tokenizer cannot be downloaded", "one line with what to get, and where to put it"
)
@pytest.mark.parametrize(
    ("status", "reason"), [(401, "access refused: accept the licence .* 'hf auth login'"), (404, "404")]
)
def test_a_download_that_fails_says_what_to_get_and_where_to_point(hub, status: int, reason: str) -> None:
    hub.status = status
    with pytest.raises(DeopError) as error:
        load_clip("ViT-B-16", "openai", cache_dir=hub.cache)
    told = str(error.value)
    for part in (
        "weights 'openai' of CLIP model 'ViT-B-16'",
        f"127.0.0.1:{hub.server_port}/timm/vit_base_patch16_clip_224.openai/resolve/main/open_clip_model.safetensors",
        str(hub.cache),
        "set clip.pretrained to its path",
        "clip.model ViT-B-16-quickgelu",
    ):
        assert part in told
    assert "\n" not in told
    with pytest.raises(DeopError, match=reason):
        load_clip("ViT-B-16", "openai", cache_dir=hub.cache)


@pytest.mark.faults(
    "weights or a tokenizer cannot be downloaded", "one line with what to get, and where to put it"
)
def test_offline_weights_and_tokenizers(monkeypatch, tmp_path, injected) -> None:
    injected(2)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DeopError, match=r"'datacompdr' of CLIP model 'MobileCLIP-B'.*\(offline: HF_HUB_OFFLINE is set\)"
    ):
        load_clip("MobileCLIP-B", "datacompdr", cache_dir=tmp_path)
    with pytest.raises(
        DeopError, match=r"tokenizer of CLIP model 'ViT-B-16-SigLIP'.*'hf download timm/ViT-B-16-SigLIP "
    ):
        load_clip("ViT-B-16-SigLIP", None, cache_dir=tmp_path)


@pytest.mark.faults(
    "weights or a tokenizer cannot be downloaded", "one line with what to get, and where to put it"
)
def test_a_plain_address_that_fails(monkeypatch, tmp_path) -> None:
    """Tags without a hub: the file goes into the cache folder under its own name."""
    tag = {"url": "http://127.0.0.1:1/models/weights.pt"}  # nothing listens there
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "deop-mini", {"far": tag})
    with pytest.raises(
        DeopError, match=r"'far' of CLIP model 'deop-mini'.*127\.0\.0\.1:1/models/weights\.pt"
    ):
        load_clip("deop-mini", "far", cache_dir=tmp_path)


@pytest.mark.faults(
    "weights or a tokenizer cannot be downloaded", "one line with what to get, and where to put it"
)
def test_timms_weights_that_cannot_be_downloaded(hub, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DeopError,
        match=r"timm's weights of backbone 'resnet101s' .*timm/resnet101s\.gluon_in1k.*pretrained_backbone to its path",
    ):
        ProposalNetwork(
            backbone="resnet101s",
            backbone_args={},
            pretrained_backbone=True,
            out_indices=(1, 2, 3, 4),
            queries=2,
            decoder_layers=1,
            width=32,
            ffn_width=32,
            heads=2,
        )


class Archive(torch.nn.Module):
    """The form of OpenAI's files: a scripted module with CLIP's tensors and three numbers besides."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        for name, value in model.state_dict().items():
            *path, last = name.split(".")
            place = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, torch.nn.Module())
                place = getattr(place, part)
            place.register_buffer(last, value)
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def tags(monkeypatch, **of: dict) -> None:
    """Gives the model "deop-mini" tags in open_clip's list."""
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "deop-mini", of)


@torch.no_grad()
def test_openais_torchscript_archives_by_path_with_their_activation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("deop-mini", force_quick_gelu=True).eval()
    path = tmp_path / "ViT.pt"
    torch.jit.script(Archive(model)).save(str(path))
    image = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(
        load_clip("deop-mini", str(path)).visual(image).pooled, model.encode_image(image)
    )


@pytest.mark.parametrize("quick", [True, False])
@torch.no_grad()
def test_a_file_that_open_clip_knows_gets_its_activation(tmp_path: Path, monkeypatch, quick: bool) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("deop-mini", force_quick_gelu=quick).eval()
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    known = {
        True: f"https://openaipublic.azureedge.net/clip/models/{sha256}/weights.pt",
        False: f"https://github.com/mlfoundations/open_clip/releases/download/v0/weights-{sha256[:8]}.pt",
    }
    other = {"url": "https://example.org/other.pt", "quick_gelu": not quick}
    tags(monkeypatch, known={"url": known[quick], "quick_gelu": quick}, other=other)
    image = torch.randn(1, 3, 96, 96)
    loaded = load_clip("deop-mini", str(path))
    torch.testing.assert_close(loaded.visual(image).pooled, model.encode_image(image))
    needed = "QuickGELU" if quick else "GELU"
    with pytest.raises(
        DeopError, match=f"trained with {needed}, but clip.quick_gelu: .*; leave clip.quick_gelu out"
    ):
        load_clip("deop-mini", str(path), quick_gelu=not quick)


def test_a_file_that_may_need_either_activation_is_refused_until_the_user_says_which(tmp_path, monkeypatch):
    model = open_clip.create_model("deop-mini").eval()
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    for name in ("ViT-B-16", "ViT-L-14"):
        with pytest.raises(
            DeopError, match=f"{path} may have .* clip.model to {name}-quickgelu .* clip.quick_gelu to false"
        ):
            load_clip(name, str(path))
    with pytest.raises(DeopError, match=r"clip\.model ViT-B-16-quickgelu has QuickGELU"):
        load_clip("ViT-B-16-quickgelu", str(path), quick_gelu=False)
    url = "https://example.org/weights.pt"
    tags(monkeypatch, one={"url": url, "quick_gelu": True}, other={"url": url})
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        gelu, quick = (
            load_clip("deop-mini", str(path), quick_gelu=said).visual(image).pooled for said in (False, True)
        )
        torch.testing.assert_close(gelu, model.encode_image(image))
        assert not torch.allclose(quick, gelu)
        # Of a model of which open_clip has weights with QuickGELU alone, there is nothing to ask.
        tags(monkeypatch, one={"url": url, "quick_gelu": True})
        torch.testing.assert_close(load_clip("deop-mini", str(path)).visual(image).pooled, quick)


def test_weights_of_another_model_and_files_that_are_none(tmp_path: Path) -> None:
    torch.save(open_clip.create_model("deop-mini").state_dict(), tmp_path / "small.pt")
    (tmp_path / "page.pt").write_text("<html>sign in</html>")
    for name, message in (
        ("small.pt", "do not fit CLIP model 'deop-mini-large'"),
        ("page.pt", "cannot be read as weights"),
    ):
        with pytest.raises(DeopError, match=f"{name} {message}"):
            load_clip("deop-mini-large", str(tmp_path / name))


def test_images_are_normalised_as_the_models_tags_ask_also_for_a_file(monkeypatch, tmp_path: Path) -> None:
    tags = {"a": {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "deop-mini", tags)
    torch.save(open_clip.create_model("deop-mini").state_dict(), tmp_path / "weights.pt")
    clip: DenseCLIP = load_clip("deop-mini", str(tmp_path / "weights.pt"))
    assert (clip.mean, clip.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
