"""``deop demo``: a page in the browser on which systems are tried and looked into."""
