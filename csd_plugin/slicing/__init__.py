"""Widths (ratio to narrow backbone) and channel maps (which teacher channels a student weight takes)."""
