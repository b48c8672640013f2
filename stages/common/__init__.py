"""The nouns that stages share, or that deserve tests of their own."""
