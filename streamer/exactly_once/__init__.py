"""Consume → transform → produce in Kafka transactions."""
