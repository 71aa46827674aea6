"""Datasets in the form that their owners publish."""
