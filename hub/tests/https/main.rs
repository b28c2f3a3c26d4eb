//! A hub as its hosts meet it: real HTTPS on loopback, a real database, a real engine program, real restarts.

#[cfg(test)]
mod common;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod refusals;
