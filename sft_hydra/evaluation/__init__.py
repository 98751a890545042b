"""Evaluation of chat models: ChatCORE, lm-evaluation-harness, exact match, and generation."""
