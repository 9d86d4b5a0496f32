"""Darknet: its files, its layers and their arithmetic. Nothing else of dnc knows it."""
