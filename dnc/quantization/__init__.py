"""Calibration: ranges of values measured on images, and what their rounding costs."""
