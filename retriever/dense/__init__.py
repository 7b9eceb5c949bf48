"""The dense leg: the vectors of the live items in memory, and the mixture of what they say with what the model says."""
