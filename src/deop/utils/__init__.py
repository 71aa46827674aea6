"""General helpers: files, progress bars, timing."""
