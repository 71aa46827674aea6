"""Pictures of docs/paper-in-pictures.md that are not figures of the workflow: ``make pictures`` draws them.

Three show the bundled CLIP, without training, at work on scenes that are drawn for them. The others plot published
tables (``docs/results/mini``). Nothing is downloaded.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from deop.api.load import load
from deop.api.segmenter import OpenVocabularySegmenter
from deop.data.emoji.dataset import draw_scene, plan_split
from deop.data.emoji.settings import EmojiScenes
from deop.data.segmentation import IGNORE
from deop.reporting.overlay import legend_colours
from deop.reporting.plot_style import COLOURS, STYLE, finish, grid, save_figure
from deop.settings.configuration import ProfileSettings
from deop.settings.files import read_profile

FOLDER = Path("docs/pictures")
PUBLISHED = Path("docs/results/mini")
SCENES = 60  # over which the accuracies are
SEED = 7  # of the scenes: neither training nor validation
LAYERS = (-2, -1)
"""The layers in which the mini CLIP mixes its patches (docs/mini-profile.md)."""
_SHOWN = 0
_ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
_DETAIL = 4  # of scenes that are shown large: the network is shown them at 96 pixels all the same
_TEMPLATE = "a picture of {}."


def scenes(
    things: Sequence[str] = (), stuff: Sequence[str] = ()
) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Pictures (S, S, 3) with label maps (S, S) and class names: one of the things and stuff given, or any number."""
    settings = ProfileSettings(read_profile(Path()), Path()).datasets["es171"]
    assert isinstance(settings, EmojiScenes)
    settings = settings.model_copy(update={"seed": SEED, "val": SCENES})
    plan = [(list(things), list(stuff))] if things else plan_split(settings, "val")
    for index, of_scene in enumerate(plan):
        drawn = draw_scene(settings, "val", index, *of_scene, detail=_DETAIL if things else 1)
        yield *drawn, list(settings.vocabulary.names)


def segmenter(alpha: float) -> OpenVocabularySegmenter:
    """The bundled CLIP, its last layers severed with ``alpha``, without proposals."""
    severance: dict[str, Any] = {"kind": "none"}
    if alpha:
        severance = {"kind": "gps", "alpha": dict.fromkeys(LAYERS, alpha)}
    return load("deop-mini/bundled", severance=severance, templates=[_TEMPLATE], short_side=96)


def many_vocabularies() -> Figure:
    """One picture, segmented three times with other words."""
    picture, _, _ = next(scenes(["banana", "guitar", "bear"], ["grass", "sky"]))
    system = segmenter(1.0)
    encoded = system.encode(picture)
    asked = (
        ["bear", "guitar", "banana", "grass", "sky"],
        {"animal": ["bear"], "instrument": ["guitar"], "fruit": ["banana"], "outdoors": ["grass", "sky"]},
        ["bear", "grass", "sky", "water"],
    )
    figure, axes = grid(1, 4, 2.5)
    _show(axes[0], picture, "picture")
    for axis, classes, title in zip(
        axes[1:], asked, ("five names", "four classes with synonyms", "other words"), strict=True
    ):
        result = system(encoded, classes)
        colours = legend_colours(len(result.classes))
        _show(axis, _painted(picture, result.labels, colours), title)
        found = [index for index, name in enumerate(result.classes) if result.areas[name] > 0.002]
        handles = [Patch(color=colours[index] / 255, label=result.classes[index]) for index in found]
        axis.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            ncols=2,
            frameon=False,
            fontsize=7,
        )
    notes = [
        "The picture is encoded once; each vocabulary is then compared with the same patch features.",
        _UNTRAINED,
    ]
    return finish(figure, "One picture, any words", notes)


def severance_maps() -> Figure:
    """What a class's heatmap and the label map are with and without severance."""
    picture, truth, names = next(scenes(["bear", "guitar"], ["grass", "sky"]))
    figure, axes = grid(2, 4, 4.1)
    words = ["bear", "guitar", "grass", "sky"]
    for row, (alpha, title) in enumerate(((0.0, "plain CLIP"), (1.0, "severed"))):
        result = segmenter(alpha)(picture, words)
        columns = axes[4 * row : 4 * row + 4]
        _show(columns[0], picture, f"{title}: picture")
        for axis, name in zip(columns[1:3], ("bear", "grass"), strict=True):
            axis.imshow(result.heatmaps[name], cmap="magma", vmin=0, vmax=1, interpolation="bilinear")
            _bare(axis, f"probability of {name}")
        labelled = truth != IGNORE
        right = (np.array([names.index(word) for word in words])[result.labels] == truth)[labelled].mean()
        _show(
            columns[3],
            _painted(picture, result.labels, legend_colours(len(words))),
            f"labels, {right:.0%} right",
        )
    colours = legend_colours(len(words))
    handles = [Patch(color=colour / 255, label=word) for colour, word in zip(colours, words, strict=True)]
    return finish(
        figure,
        "Severance keeps each patch to itself",
        ["Probabilities from 0 (dark) to 1 (bright).", _UNTRAINED],
        handles,
        4,
    )


def alpha_sweep() -> Figure:
    """Label maps of a scene, and pixel accuracy over many, as alpha goes from 0 to 1."""
    drawn = list(scenes())
    pictures = [picture for picture, _, _ in drawn]
    names = drawn[0][2]
    accuracies = []
    figure, axes = grid(2, len(_ALPHAS), 3.6)
    colours = legend_colours(len(names))
    for axis, alpha in zip(axes, _ALPHAS, strict=False):
        results = segmenter(alpha)(pictures, names)
        right = [
            (result.labels == truth)[truth != IGNORE]
            for result, (_, truth, _) in zip(results, drawn, strict=True)
        ]
        accuracies.append(float(np.concatenate(right).mean()))
        title = rf"$\alpha$ = {alpha:g}: {right[_SHOWN].mean():.0%} right"
        _show(axis, _painted(pictures[_SHOWN], results[_SHOWN].labels, colours), title)
    space = axes[len(_ALPHAS)].get_subplotspec().get_gridspec()
    for axis in axes[len(_ALPHAS) :]:
        axis.remove()
    plot = figure.add_subplot(space[1, :])
    plot.plot(_ALPHAS, [100 * value for value in accuracies], "o-", color=COLOURS[0])
    plot.set(xlabel=r"$\alpha$ of the last two layers", ylabel="pixels right, %", ylim=(0, None))
    notes = [
        f"Above, the first of {SCENES} scenes, a colour for each class; below, all of them, with {len(names)} names.",
        _UNTRAINED,
    ]
    return finish(figure, "From plain self-attention to none between patches", notes)


def prompts() -> Figure:
    """Table S1 as bars."""
    rows = _published("tableS1")
    figure, [axis] = grid(1, 1, 2.4)
    labels = [row["method"] for row in rows]
    axis.barh(
        labels,
        [float(row["es171.hIoU"]) for row in rows],
        xerr=[float(row["es171.hIoU.std"]) for row in rows],
        color=COLOURS[0],
    )
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set(xlabel="hIoU, %")
    return finish(figure, "What prompts bring (Table S1)", [_of(rows, "tableS1")])


def training() -> Figure:
    """Severance alone beside what training adds to it, from Tables S3 and 3."""
    untrained, trained = _published("tableS3"), _published("table3")
    by_label = {row["method"]: row for row in (*untrained, *trained)}
    chosen = {
        "No layer": "CLIP as it is",
        "Last 3 layers": "+ severance",
        "Baseline+ w/ PS": "+ prompts, trained",
        "DeOP": "+ anchors, trained (DeOP)",
    }
    figure, [axis] = grid(1, 1, 2.6)
    for shift, metric, colour in ((-0.2, "seen", COLOURS[0]), (0.2, "unseen", COLOURS[1])):
        values = [float(by_label[label][f"es171.{metric}"]) for label in chosen]
        errors = [float(by_label[label][f"es171.{metric}.std"]) for label in chosen]
        axis.bar(
            np.arange(len(chosen)) + shift, values, 0.38, yerr=errors, color=colour, label=f"{metric} classes"
        )
    axis.set_xticks(range(len(chosen)), chosen.values())
    axis.set_ylabel("mIoU, %")
    axis.grid(visible=False, axis="x")
    axis.legend(frameon=False)
    notes = [
        "Proposals are trained on the masks of seen classes in all of them.",
        _of(untrained, "tableS3 and table3"),
    ]
    return finish(figure, "What severance does alone, and what training adds", notes)


def classes_and_crops() -> Figure:
    """Time by number of classes, and by number of crops."""
    scaling, speed = _published("scaling"), _published("speed")
    of_classes = [row for row in scaling if row["by"] == "classes"]
    at_size = [row for row in speed if row["clip"] == "ViT-B-16" and row["compiled"] == "False"]
    crops = [row for row in at_size if row["system"] == "SimBaseline" and row["crops"]]
    one = next(
        row
        for row in at_size
        if row["system"] == "DeOP" and float(row["classes"]) == float(crops[0]["classes"])
    )
    figure, axes = grid(1, 2, 2.6, sharey=True)
    axes[0].plot(
        [int(row["value"]) for row in of_classes], _seconds(of_classes), "o-", color=COLOURS[0], label="DeOP"
    )
    axes[0].set(xlabel="class names", ylabel="seconds an image", xlim=(0, None))
    axes[1].plot(
        [float(row["crops"]) for row in crops],
        _seconds(crops),
        "s-",
        color=COLOURS[1],
        label="SimBaseline, a pass for each",
    )
    axes[1].axhline(_seconds([one])[0], color=COLOURS[0], label="DeOP, one pass")
    axes[1].set(xlabel="segments shown to CLIP", xlim=(0, None), ylim=(0, None))
    for axis in axes:
        axis.legend(frameon=False)
    notes = [
        f"ViT-B/16 with random weights, {crops[0]['image']} pixels, on {crops[0]['machine']}; text embeddings cached."
    ]
    return finish(
        figure, "One pass costs the same for any vocabulary; many passes cost by the segment", notes
    )


PICTURES: dict[str, Callable[[], Figure]] = {
    "many-vocabularies": many_vocabularies,
    "severance-maps": severance_maps,
    "alpha": alpha_sweep,
    "prompts": prompts,
    "training": training,
    "classes-and-crops": classes_and_crops,
}
_UNTRAINED = (
    "The bundled mini CLIP with prompt templates: no proposals, nothing trained. Scenes are drawn for this picture, "
    "from a seed that neither training nor validation has."
)


def _published(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _of(rows: list[dict[str, str]], name: str) -> str:
    first = rows[0]
    return (
        f"Mini profile, es171, seeds {first['seeds']}, commit {first['commit']} ({PUBLISHED}/{name}). Bars are means "
        "over seeds, lines their standard deviations."
    )


def _seconds(rows: list[dict[str, str]]) -> list[float]:
    return [float(row["latency_median_ms"]) / 1000 for row in rows]


def _painted(picture: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return (0.35 * picture + 0.65 * colours[labels]).astype(np.uint8)


def _show(axis: Any, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture)
    _bare(axis, title)


def _bare(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])


def draw(folder: Path = FOLDER) -> None:
    """Draws all pictures into ``folder``, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        with matplotlib.rc_context(STYLE):
            figure = picture()
        save_figure(figure, folder / f"{name}.png")


if __name__ == "__main__":
    draw()
