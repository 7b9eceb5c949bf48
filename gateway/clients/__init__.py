"""Who asks, what each may do, and how often."""
