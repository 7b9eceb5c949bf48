"""What a person on call asks: the state of the pipeline, and the full check of an index."""
