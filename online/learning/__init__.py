"""Learning: what one replica's model has learned and still has to send; pure."""
