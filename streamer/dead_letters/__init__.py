"""Dead letters as a person meets them: reading, choosing, replaying each exactly once."""
