"""A record's value as other programs write it, read for what it says."""
