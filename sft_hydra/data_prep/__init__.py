"""From chat rows to packed shards on disk."""
