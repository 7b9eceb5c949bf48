"""The one writer of an index directory."""
