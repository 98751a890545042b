"""This process: its rank, its signals, its lock on a run folder. Without torch."""
