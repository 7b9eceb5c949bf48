"""Item updates: how their records are read, in batches and one by one."""
