//! The unprivileged, asynchronous half: it has the network and no privilege.

pub mod fetch;
mod http;
mod pull;
