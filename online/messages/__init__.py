"""Messages: requests and answers as structs, and the identity of their sender."""
