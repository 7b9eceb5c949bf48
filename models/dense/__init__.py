"""The dense leg: vectors of items beside their SIDs, so that an item that the model has never seen is found."""
