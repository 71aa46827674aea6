"""The revision of each stage's results, which is part of the keys of its jobs.

Outputs are found by their keys, and code is not part of a key. So whoever changes what a stage computes raises its
number here, and all its outputs, and what is made from them, are computed again. Raise it when the same settings and
inputs now give other results: a fixed bug, another default inside the code, another column in a table. Do not raise
it for a faster or tidier way to the same results (differences by rounding included), nor because an earlier stage was
raised: keys include the keys of inputs.

``python -m deop.tools.revisions`` reports stages whose code changed while their number did not. Numbers only go up.
"""

from __future__ import annotations

REVISIONS: dict[str, int] = {
    "download": 1,
    "prepare_data": 2,
    "pretrain_clip": 1,
    "pretrain_backbone": 1,
    "learn_prompts": 2,
    "train_proposals": 1,
    "train_system": 2,
    "build_system": 1,
    "evaluate": 4,
    "measure_speed": 2,
    "benchmark": 2,
    "table": 1,
    "claims": 1,
    "figure": 1,
    "picture": 3,
}
