"""The verbs of the command line, by what they are for: each function `add_VERB` gives one its options."""
