"""The systems of the tables, all behind :class:`deop.methods.base.Segmenter`."""
