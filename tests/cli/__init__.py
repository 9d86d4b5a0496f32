"""A package, because the names of these files are those of others too."""
