"""What makes the pages that say what the code says: a module for each kind, which gives pages as Markdown."""
