//! Tests of the policy language: what is read, who is trusted, what is refused, and what comes out.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

mod compile;
mod compiled;
mod every_refusal;
mod examples;
mod keys;
mod laws;
mod refusals;
mod refusals_of_kinds;
mod repository;
mod scale;
mod schema_laws;
mod secrets;
mod settings_laws;
mod settings_read;
mod support;
mod trial;
mod trust;
mod trust_certificates;
mod trust_history;
mod trust_openpgp;
