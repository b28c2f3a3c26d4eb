//! The reference central endpoint: hosts enrol, check in, and ask to be reimaged; people decide; an engine acts.
//!
//! # The map
//!
//! ```text
//! agent ──HTTPS──▶ http ──▶ hosts · reimages ──▶ store (SQLite, one transaction a decision, audit in the same)
//! person ─socket─▶ control ─▶ admin ─┘   │
//!                                        └─ intent committed ─▶ engine::Dispatcher ─▶ engine::exec ─▶ result recorded
//! ```
//!
//! - [`config`] turns `hub.toml` into inert [`HubOptions`].
//! - [`http`] translates calls to functions and refusals to problem documents; it decides nothing.
//! - [`hosts`] decides who may speak; [`reimages`] decides about requests, by the state machine of the protocol crate.
//! - [`store`] holds tables; [`store::audit`] is an append-only chain of hashes.
//! - [`engine`] calls what re-creates hosts; [`engine::exec`] is the only place that starts processes.
//! - [`admin`] is what people do; [`control`] carries it over a unix socket.
//!
//! # Invariants
//!
//! - Deny by default: a host whose group has not opted in, or has no engine, cannot be reimaged.
//! - A request concerns the host that its bearer token names, and no other can be named.
//! - The engine is called only after the intent is committed, and never a second time unless a person says so: a restart
//!   that finds an intent without a result holds the request.
//! - From the commit of the intent on, the old incarnation is answered with 410.
//! - No engine's success is success: only a new incarnation that enrols with the bound token and converges is.
//! - No globals: any number of hubs may run in one process.

pub mod admin;
pub mod config;
pub mod control;
mod engine;
mod error;
mod hosts;
mod http;
mod hub;
mod reimages;
mod secret;
mod store;

pub use store::audit::{AuditCheck, AuditEntry};

pub use admin::Admin;
pub use config::{Approval, Engine, Group, HubOptions, TlsIdentity};
pub use error::{CallError, HubError, StoreError};
pub use hub::{Running, start};
