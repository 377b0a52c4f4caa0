"""Sure: how sure an answer is, as a set of labels or an interval that holds the coverage asked."""
