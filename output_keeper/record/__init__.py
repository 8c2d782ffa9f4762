"""The CRDT record and its durability: schema, store, sync, projection by value, run files."""
