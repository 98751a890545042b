"""The config's dataclasses: every key that can be set, its type, default and text. Imports nothing of the package."""
