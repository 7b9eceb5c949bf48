"""What is trained and measured: the plan, its records and the running of it."""
