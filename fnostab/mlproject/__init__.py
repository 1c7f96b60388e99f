"""What the entry points of `MLproject` call."""
