"""What the entry points of `MLproject` name; see docs/decisions/0001 for why they lie here."""
