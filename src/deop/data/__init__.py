"""Datasets: EmojiScenes, and the one dataset class that reads any prepared folder."""
