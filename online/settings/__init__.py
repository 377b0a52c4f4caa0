"""The settings: parsing, validation, and names and paths that follow from them."""
