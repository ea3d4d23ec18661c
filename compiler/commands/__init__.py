"""Commands that compile."""
