"""The second model: it learns in shadow, is compared, and may be promoted."""
