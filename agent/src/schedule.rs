//! When to run. Written next.
