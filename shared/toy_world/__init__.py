"""The toy world: pictures of coloured shapes in the official dataset layouts, drawn in seconds.

It is the embedded default behind every script's `--toy`: the same code and formats as the real
datasets, no download. `python -m shared.toy_world` draws it.
"""
