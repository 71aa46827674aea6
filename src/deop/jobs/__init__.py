"""Jobs and what they leave: planning, keys, artifacts, provenance."""
