"""Where an engine loses accuracy: layer by layer, and image by image. `dnc diagnose` shows it."""
