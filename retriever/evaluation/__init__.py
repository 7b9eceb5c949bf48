"""How well items are found: cases, the references beside them, metrics with intervals, and what a person sees of it."""
