"""What training learns from: examples and histories, read, made from a catalogue, joined, with codes of their queries."""
