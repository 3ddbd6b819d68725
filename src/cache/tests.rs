//! What must hold for records, on a real store.
