"""From an update to the index: assignment, throughput, freshness, sizes."""
