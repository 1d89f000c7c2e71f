"""Training runs that resume bit for bit: settings, state, the loop, optimizers."""
