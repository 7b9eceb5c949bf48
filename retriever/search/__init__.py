"""Constrained decoding over the trie: beam search and its marginal form."""
