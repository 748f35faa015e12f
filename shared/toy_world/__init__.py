"""The embedded default: pictures, datasets in official layouts, small trained checkpoints."""
