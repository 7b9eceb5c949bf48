"""Which items a query's filter and exclusions let through."""
