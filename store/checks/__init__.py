"""Whether an index is sound, and copies of it."""
