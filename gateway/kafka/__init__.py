"""What the gateway does with Kafka: threads that poll, and futures of the event loop that they hand over."""
