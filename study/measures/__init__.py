"""What is measured of a model or a codebook, and the references beside it."""
