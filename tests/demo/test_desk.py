"""What the page of ``deop demo`` does, without a browser: visitors' pictures and words, systems, severance, limits."""

from __future__ import annotations

import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import deop
from deop.demo import markup
from deop.demo.desk import Desk, Session
from deop.demo.intake import read_names, read_upload
from deop.demo.limits import Limits, Refused
from deop.demo.systems import ShownSystem
from deop.methods.base import normalise

PATIENT = Limits(seconds=600)


@pytest.fixture(scope="module")
def systems():
    trained = ShownSystem("deop-mini", deop.load("deop-mini", device="cpu"))
    return trained, ShownSystem("clip", deop.load("deop-mini/bundled", short_side=96, device="cpu"))


@pytest.fixture
def desk(systems):
    return Desk(systems, PATIENT, seed=3)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is this large, without any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.faults(
    "`deop demo` is given a file that is no picture, is damaged or is far too large", "it is refused"
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is text", "no picture"),
        (b"", "no picture"),
        (b"<svg onload='alert(1)'/>", "no picture"),
        (bomb(8000, 8000), "more than 50 million pixels"),
        (bomb(60000, 60000), "more than 50 million pixels"),
        (bomb(10, 10), "damaged"),
        (b"\xff" * 3000, "larger than 0.002 MB"),
    ],
)
def test_files_that_are_no_pictures_are_refused(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(Refused, match=message):
        read_upload(path, Limits(bytes=2000))


def test_pictures_are_turned_upright_and_reduced(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image = Image.new("RGB", (3000, 1000), "white")
    image.paste("red", (0, 0, 1500, 1000))
    image.save(tmp_path / "a.png", "JPEG", exif=exif)  # what it is is read from its content
    picture = read_upload(tmp_path / "a.png", Limits())
    assert picture.shape == (1024, 341, 3) and picture.dtype == np.uint8
    assert picture[:500, :, 1].max() < 30 and picture[-500:, :, 1].min() > 225


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one"),
        (" , \n", "at least one"),
        ("bear, <script>alert(1)</script>", "< or >"),
        ("be\x00ar", "control"),
        ("be\u202ear", "control"),  # turns the writing around
        ("bear, " + "a" * 61, "61 characters; at most 60"),
        (", ".join(f"name{index}" for index in range(51)), "51 class names"),
        ("a" * 100_000, "too much text"),
    ],
)
def test_names_that_are_no_names_are_refused(text, message):
    with pytest.raises(Refused, match=message) as refused:
        read_names(text, Limits())
    assert len(str(refused.value)) < 200


def test_names_are_names_and_never_files():
    assert read_names("bear,  brown\tbear\n@/etc/hostname, Bear,", Limits()) == [
        "bear",
        "brown bear",
        "@/etc/hostname",
    ]


@pytest.mark.slow
def test_a_scene_is_drawn_segmented_and_explained(desk):
    session = desk.draw(Session())
    assert desk.draw(Session()).names != session.names
    view = desk.view(session, 0)
    assert max(view.picture.size) == 720
    shares = [float(value) for value in re.findall(r'"number">([\d.]+) %', view.legend)]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.3)
    assert "Click the picture" in view.region
    clicked = replace(session, point=(0.5, 0.5))
    trained, untrained = (desk.view(clicked, index).region for index in (0, 1))
    for caption in ("Its proposal", "Its anchor heatmap", "before severance", "and after, with α = 1.00"):
        assert f"<figcaption>{caption}" in trained or f"{caption}</figcaption>" in trained
    assert trained.count("<img") == 4 and untrained.count("<img") == 2
    assert "Best classes of the proposal" in trained and "Best classes of this pixel" in untrained


def test_names_reach_the_page_escaped(desk):
    session = desk.name(desk.draw(Session()), "cat & 'dog', \"fox\"")
    view = desk.view(replace(session, point=(0.2, 0.8)), 0)
    for html in (view.legend, view.region, markup.message('<b>"&'), markup.heading("<a>", "&")):
        assert "cat & '" not in html and '"fox"' not in html and "<b>" not in html and "<a>" not in html
    assert "cat &amp; &#x27;dog&#x27;" in view.legend and "&quot;fox&quot;" in view.legend


def test_what_is_said_of_a_region_is_what_the_system_says(desk, systems):
    session = desk.draw(Session())
    picture, names = desk._kept(session), list(session.names)
    for system in systems:
        result = system.segment(session.picture, picture, names, None)
        height, width = result.labels.shape
        for point in ((0.25, 0.25), (0.5, 0.6), (0.9, 0.1), (0.0, 1.0)):
            found = system.region(session.picture, picture, names, None, point)
            row, column = min(int(point[0] * height), height - 1), min(int(point[1] * width), width - 1)
            assert found.label == names[result.labels[row, column]]
            scores = [score for _, score in found.best]
            assert len(scores) == min(5, len(names)) and scores == sorted(scores, reverse=True)
            if found.proposal is None:
                assert found.best[0][0] == found.label
            else:
                assert found.heatmap.max() == pytest.approx(1)


def test_a_region_is_pointed_at_by_its_class(desk):
    session = desk.draw(Session())
    before = desk.view(session, 0)
    assert before.explained is None and 1 <= len(before.found) <= len(session.names)
    for name in before.found:
        pointed = desk.point_at(session, 0, None, name)
        after = desk.view(pointed, 0)
        assert after.explained == name and after.found == before.found
        assert all(0 < part < 1 for part in pointed.point)
    with pytest.raises(Refused, match="no region of unicorn now"):
        desk.point_at(session, 0, None, "unicorn")


@pytest.mark.slow
def test_the_slider_severs_and_leaves_the_system_as_it_was(desk, systems):
    session = desk.draw(Session())
    picture, names = desk._kept(session), list(session.names)
    for system in systems:
        before = system.segmenter.network.severance
        own = system.segment("own", picture, names, None)
        mixed = system.segment("own", picture, names, 0.0)
        assert (own.labels != mixed.labels).mean() > 0.01
        assert system.segmenter.network.severance is before
        assert np.array_equal(system.segment("other", picture, names, 1.0).labels, own.labels)
    unsevered = deop.load("deop-mini/bundled", short_side=96, severance="none", device="cpu")
    assert np.array_equal(mixed.labels, unsevered(picture, names).labels)


def test_attention_before_and_after_is_that_of_equation_2(systems):
    system = systems[1]
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    clip = system.segmenter.network.clip
    inputs = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    attended = clip.patch_attention(normalise(inputs, clip.mean, clip.std))[0].mean(0)
    side = 96 // clip.patch_size
    row = attended[1 + 2 * side + 1, 1:]
    point = (2.5 / side, 1.5 / side)
    expected = (row / row.sum()).reshape(side, side).numpy()
    before, after = system.attention(picture, 0.25, point)
    np.testing.assert_allclose(before, expected, rtol=1e-4, atol=1e-7)
    expected = 0.75 * expected
    expected[2, 1] += 0.25
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-7)
    severed = system.attention(picture, None, point)[1]
    assert severed[2, 1] == 1 and severed.sum() == 1


def test_a_request_that_takes_too_long_is_stopped(systems):
    hurried = Desk(systems, Limits(seconds=1e-6))
    session = hurried.draw(Session())
    with pytest.raises(Refused, match=r"too long|Many people"):
        hurried.view(session, 0)
    # The next one is served by the same systems.
    patient = Desk(systems, PATIENT)
    assert patient.view(patient.draw(Session()), 0).legend


@pytest.mark.slow
def test_ten_requests_at_once_get_what_they_would_get_alone(desk):
    sessions = [desk.draw(Session()) for _ in range(10)]
    asked = [(session, index % 2, index / 10) for index, session in enumerate(sessions)]
    alone = [desk.view(*one).legend for one in asked]
    with ThreadPoolExecutor(10) as threads:
        together = list(threads.map(lambda one: desk.view(*one).legend, asked))
    assert together == alone


def test_memory_is_bounded(desk, systems, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    first = desk.name(desk.take(Session(), tmp_path / "small.png"), "sky")
    sessions = [desk.take(first, tmp_path / "small.png") for _ in range(32)]
    with pytest.raises(Refused, match="choose it again"):
        desk.view(first, 0)
    for session in sessions[:10]:
        desk.view(session, 0)
    assert len(desk._pictures) == 32 and len(systems[0]._encodings) == 8


def test_nothing_is_asked_before_there_is_a_picture_and_a_name(desk, tmp_path):
    with pytest.raises(Refused, match="choose a picture"):
        desk.view(Session(names=("bear",)), 0)
    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    with pytest.raises(Refused, match="at least one class name"):
        desk.view(desk.take(Session(), tmp_path / "small.png"), 0)
