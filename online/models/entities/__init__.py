"""A shared model with an offset for each entity: each user, film or machine."""
