"""Trust: feedback and its senders are judged before a row is written."""
