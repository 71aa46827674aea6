"""What the data path takes with many images (docs/scale.md)."""

from __future__ import annotations

import pandas as pd
import pytest

from deop.tools.scale import run


@pytest.mark.slow
def test_each_number_of_images_is_a_row_of_times_files_and_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run([40, 80], tmp_path / "scale.csv", workers=1)
    table = pd.read_csv(tmp_path / "scale.csv")
    assert table.images.tolist() == [40, 80]
    # A label map for each image, and the card and list of the dataset.
    assert table.files_added.tolist() == [42, 82]
    assert (
        (table.drop(columns=["read_mb", "order_mb", "machine", "python", "torch", "commit"]) > 0).all().all()
    )
    assert table.lists_mb[1] > 1.9 * table.lists_mb[0] - 0.001
    assert table.machine.str.contains("cores").all() and table.commit.nunique() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["scale.csv"]  # the images are gone
