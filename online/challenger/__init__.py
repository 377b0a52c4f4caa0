"""The challenger: a second model that learns in shadow, is compared, and may be promoted."""
