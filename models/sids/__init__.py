"""How codes are read as SIDs: layouts, head tokens, census, vocabulary."""
