"""What goes into the databases: bytes, batches, keys in several partitions."""
