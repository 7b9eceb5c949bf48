"""A schema registry: the schemas that values name, and ours in it."""
