"""Training an adapter: state, step, loop, checkpoint, tracking."""
