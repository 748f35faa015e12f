"""LAVIS' seven tasks on today's stack: one app, an index of own pictures, training."""
