"""A query, from its parts to the whole."""
