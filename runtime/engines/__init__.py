"""One file per backend behind one protocol."""
