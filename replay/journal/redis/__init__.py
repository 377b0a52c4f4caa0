"""The journal in one Redis or Valkey server: Lua scripts, their arguments, and checks."""
