"""The kinds of datasets: one module each, called by the ``kind`` in the configuration (docs/adding-a-dataset.md)."""
