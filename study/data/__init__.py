"""The data sets, the codebooks of their items, the planted hourglass."""
