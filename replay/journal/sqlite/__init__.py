"""The journal in one SQLite file: tables, transactions, checks and the file itself."""
