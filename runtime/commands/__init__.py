"""Commands that need the thin runtime only."""
