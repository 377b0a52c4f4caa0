"""Parts of a torch network's model: its loss, its last layer, its rehearsal steps."""
