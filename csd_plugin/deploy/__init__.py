"""Trained students at work: files that describe themselves, export, upscaling."""
