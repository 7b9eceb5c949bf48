"""Fine-tuning the language model: examples, tables of tokens, losses, the loop."""
