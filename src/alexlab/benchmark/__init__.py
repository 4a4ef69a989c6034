"""Interleaved measurements of alexlab, of other training loops and of what the machine can do."""
