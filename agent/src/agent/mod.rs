//! The root event loop. Written next.
