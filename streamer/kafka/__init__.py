"""The Kafka clients: configuration, errors, gathering, reading to the end, topics."""
