//! Cases, tolerance and tests that any backend can be held to.
