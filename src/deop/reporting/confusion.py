"""Which classes the pixels of unseen classes are predicted as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from deop.errors import DeopError

TOP = 8
"""Number of wrong classes that get their own column."""


def confusion_matrix(path: Path, classes: int) -> np.ndarray:
    """(C, C) pixels by true class and by predicted class, summed over the images of a confusion CSV.

    Raises:
        DeopError: there is no such file.
    """
    if not path.exists():
        raise DeopError(f"{path} is missing: the confusion of each image, which stage evaluate writes")
    pairs = pd.read_csv(path)
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (pairs["truth"], pairs["predicted"]), pairs["pixels"])
    return matrix


def confusion_shares(
    matrices: dict[str, np.ndarray], names: list[str], unseen: list[str]
) -> dict[str, pd.DataFrame]:
    """Where the pixels of unseen classes go, in percent of each class's pixels, for each system.

    Args:
        matrices: (C, C) pixels by true and by predicted class, by the system's label.
        names: the C classes in label order.
        unseen: the unseen ones.

    Returns:
        One frame per system, all with the same rows and columns. Rows are the unseen classes, sorted by the last
        system's share of correct pixels, highest first; a row is NaN if the class has no pixels. Columns are
        (group, name): the correct share, then for seen and for unseen classes the ``TOP`` most frequent wrong classes
        over all systems, most frequent first, and the rest.
    """
    labels = [names.index(name) for name in unseen]
    wrong = sum(matrices.values())[labels].astype(float)
    wrong[range(len(labels)), labels] = 0
    frequency = wrong.sum(0)
    order = np.argsort(-frequency, kind="stable")
    top = [int(label) for label in order[:TOP] if frequency[label] > 0]
    frames = {}
    for system, matrix in matrices.items():
        pixels = matrix[labels].astype(float)
        total = pixels.sum(1, keepdims=True)
        right = pixels[range(len(labels)), labels].copy()
        pixels[range(len(labels)), labels] = 0
        columns = {("", "correct"): right}
        for group, is_unseen in (("seen", False), ("unseen", True)):
            of_group = [label for label in range(len(names)) if (label in labels) == is_unseen]
            shown = [label for label in top if label in of_group]
            columns |= {(group, names[label]): pixels[:, label] for label in shown}
            rest = [label for label in of_group if label not in shown]
            columns[group, f"other {group}"] = pixels[:, rest].sum(1)
        frame = pd.DataFrame(columns, index=pd.Index(unseen))
        frames[system] = 100 * frame.div(np.where(total == 0, np.nan, total)[:, 0], axis=0)
    best = list(frames.values())[-1]["", "correct"].sort_values(ascending=False, kind="stable").index
    return {system: frame.loc[best] for system, frame in frames.items()}
