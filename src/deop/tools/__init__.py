"""Commands that the workflow does not call."""
