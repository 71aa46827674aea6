"""EmojiScenes, the generated benchmark."""
