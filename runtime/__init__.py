"""How a world is run."""
