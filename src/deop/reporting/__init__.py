"""Tables, figures and pictures of results.

A *table* has numbers. A *figure* is a plot of numbers (:mod:`deop.reporting.figures` chooses values and notes,
:mod:`deop.reporting.plots` and :mod:`deop.reporting.parts_plot` draw). A *picture* shows images of a dataset with what
a network makes of them (:mod:`deop.reporting.scene_picture`, :mod:`deop.reporting.anchor_picture`). The workflow
writes figures and pictures to ``results/figures``.
"""
