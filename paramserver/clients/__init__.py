"""Ways from a replica to the server of its model: by Ray, in the same process, to several."""
