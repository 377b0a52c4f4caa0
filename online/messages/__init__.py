"""Messages: requests and answers as structs, and who sends them."""
