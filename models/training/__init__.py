"""Fine-tuning the language model: tables of tokens, losses, the loop."""
