"""Snapshots of what is committed."""
