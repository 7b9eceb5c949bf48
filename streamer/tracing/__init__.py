"""Traces (W3C Trace Context, OpenTelemetry): whose context a record has, and what becomes of it."""
