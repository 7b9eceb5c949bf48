"""The LMDB environment and its file."""
