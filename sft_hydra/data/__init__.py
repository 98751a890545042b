"""Reading packed sets: dataset.py has the order in which training sees them, shards.py the format on disk."""
