"""Training: speed, memory, warm starts."""
