"""The networks in torch: the definition of the mathematics that every engine is held to."""
