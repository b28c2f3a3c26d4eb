//! The unprivileged, asynchronous half. Written next.
