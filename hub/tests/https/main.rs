//! A hub as its hosts meet it: real HTTPS on loopback, a real database, a real engine program, real restarts.

mod common;
mod lifecycle;
mod refusals;
