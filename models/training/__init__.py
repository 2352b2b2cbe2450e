"""How a world is made: record a game, train the autoencoder and the dynamics, judge, pack."""
