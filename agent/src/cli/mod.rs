//! Command line. Written next.
