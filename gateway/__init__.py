"""HTTP for those who do not speak Kafka: queries, answers and items over `sidstream gateway` (docs/gateway.md)."""
