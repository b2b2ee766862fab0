"""Rankers side by side, and the report's numbers out."""
