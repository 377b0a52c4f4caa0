"""Tables of rows by id: numbering, pages that copies share, and their messages."""
