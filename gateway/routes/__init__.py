"""What is answered over HTTP, by resource."""
