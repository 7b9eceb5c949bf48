"""A query event → an answer: admission, prompt, search, ranking."""
