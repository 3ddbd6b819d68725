//! Exports end to end, against a registry and a client in memory.
