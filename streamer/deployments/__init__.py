"""Which bundles answer and whose pipelines run: the record ``serving`` read, followed and changed."""
