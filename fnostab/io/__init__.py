"""Atomic files, locks, and text that strangers wrote."""
