"""Rendering many conversations without running Jinja for each: a template's output is cached per message shape."""
