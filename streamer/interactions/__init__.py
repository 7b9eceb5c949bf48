"""What came of answers: interactions checked, made into training examples, and counted as hits of each bundle."""
