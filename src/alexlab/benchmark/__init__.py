"""Interleaved measurements of alexlab, of other training loops and of the limits of the machine."""
