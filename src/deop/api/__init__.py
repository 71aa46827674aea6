"""The Python interface: ``deop.load`` gives a segmenter, a segmenter gives results."""
