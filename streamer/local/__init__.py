"""Apache Kafka and all processes on this machine: ``sidstream broker`` and ``sidstream up``."""
