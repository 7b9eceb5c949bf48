"""What a start or a change of what answers costs."""
