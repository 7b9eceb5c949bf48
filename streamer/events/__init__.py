"""What is on the wire; no client and no clock."""
