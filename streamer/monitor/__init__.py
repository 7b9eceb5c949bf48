"""Absolute counts → layouts, alerts and drift: a Faust app around pure judgement."""
