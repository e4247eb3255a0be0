"""Measuring a model: bits per byte, and later questions about stories."""
