"""What a producer of item updates imports."""
