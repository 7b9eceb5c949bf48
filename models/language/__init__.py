"""The language model, its tokenizer and its prompts."""
