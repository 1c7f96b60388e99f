"""Training one arm with Lightning, on one device or on several."""
