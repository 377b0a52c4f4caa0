"""Clients by which a replica reaches its parameter server: Ray, in-process, and sharded."""
