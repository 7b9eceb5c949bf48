"""Item updates → codes, exactly once."""
