"""Messages and tokenizers: what a chat template makes of a conversation. Its way in: tokenizer.py and render.py."""
