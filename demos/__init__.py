"""What people run: the command line, the player, the examples."""
