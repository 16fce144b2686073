"""Protocols that judge models: what they answer, and what their token distributions look like."""
