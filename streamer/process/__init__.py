"""What every long-running process shares: logs, health, metrics, shutdown."""
