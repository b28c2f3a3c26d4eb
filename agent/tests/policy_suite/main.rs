//! Tests of the policy language: what is read, who is trusted, what is refused, and what comes out.

mod compile;
mod examples;
mod laws;
mod refusals;
mod support;
mod trust;
