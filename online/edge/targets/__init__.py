"""Tables of numbers become files here, one kind a module, and are proved on their own runtimes."""
