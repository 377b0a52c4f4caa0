"""Trust: filters judge feedback and its sources before a row is written."""
