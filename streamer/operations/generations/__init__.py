"""Generations: bundles deployed, made to answer, rolled back and retired, one idempotent step after the other."""
