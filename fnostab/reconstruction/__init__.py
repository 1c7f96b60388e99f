"""A whole scan from what a network predicts of it, some patterns at a time: stitched, compared, refined."""
