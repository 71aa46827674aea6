"""The networks: CLIP and what is done to it, proposals, anchors, prompts, losses."""
