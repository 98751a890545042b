"""Chat templates and tokenizers: from conversations to text and token ids. Entry points: tokenizer.py and render.py."""
