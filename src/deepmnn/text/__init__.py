"""Text to tokens and back: tokenizer, chat template, what a model recommends, streamed answers."""
