"""Measures, each a file: a data class whose fields are its settings, and the descriptions of its values."""
