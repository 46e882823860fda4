"""Helpers that have nothing to do with recommending."""
