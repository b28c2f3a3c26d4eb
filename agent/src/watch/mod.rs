//! Says where to look, never what happened. Written next.
