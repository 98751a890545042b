"""From chat rows to packed training rows. Its way in: prepare.py; what training reads: dataset.py."""
