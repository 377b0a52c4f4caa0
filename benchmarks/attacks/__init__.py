"""These tables say what lies and floods do to the model, and what honest senders pay."""
