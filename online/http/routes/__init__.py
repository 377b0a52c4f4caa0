"""Routes that are not hot, by what they are for: operators, devices, pages, uploads."""
