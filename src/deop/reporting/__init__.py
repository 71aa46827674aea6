"""Tables, figures and pictures of results: what is in them and how they look. Stages and tools write them to files.

- A *table* holds numbers: :mod:`~deop.reporting.results_table`, :mod:`~deop.reporting.claims_table` and
  :mod:`~deop.reporting.benchmark_table`, written as text by :mod:`~deop.reporting.formats`.
- A *figure* plots numbers. :mod:`~deop.reporting.figures` chooses values and notes; :mod:`~deop.reporting.plots` and
  :mod:`~deop.reporting.parts_plot` draw them, in the style of :mod:`~deop.reporting.plot_style`.
- A *picture* shows images of a dataset with what a system makes of them: :mod:`~deop.reporting.scene_picture` and
  :mod:`~deop.reporting.anchor_picture`. :mod:`~deop.reporting.contact_sheet` shows a dataset alone, and
  :mod:`~deop.reporting.overlay` the result for one image.

The workflow writes figures and pictures to ``results/figures``.
"""
