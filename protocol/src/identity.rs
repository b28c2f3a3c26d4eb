//! Who speaks: names of hosts and requests, tokens, and enrolment.
//!
//! Never logs a token: [`Token`]'s `Debug` hides its text.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a {what}: expected 1 to 128 of the characters a-z A-Z 0-9 . _ : - starting with a letter or a digit"
)]
pub struct InvalidIdentifier {
    /// What it was to be.
    pub what: &'static str,
    /// The text, bounded.
    pub text: String,
}

/// Longest identifier, in bytes.
const MAX_IDENTIFIER: usize = 128;

/// What [`is_identifier`] accepts, for the schema.
const PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$";

fn is_identifier(text: &str) -> bool {
    text.len() <= MAX_IDENTIFIER
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-'))
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidIdentifier;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                if is_identifier(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidIdentifier { what: $what, text: text.chars().take(MAX_IDENTIFIER).collect() })
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidIdentifier;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": PATTERN })
            }
        }
    };
}

identifier!(
    /// Names the slot that a host fills; survives every reimage.
    HostId,
    "host id"
);
identifier!(
    /// The agent's own name for a request: its idempotency key, one for the life of the request.
    RequestKey,
    "request key"
);
identifier!(
    /// The endpoint's name for a request.
    ReimageId,
    "reimage id"
);
identifier!(
    /// The kernel's boot id.
    BootId,
    "boot id"
);

/// A secret of one of the three kinds: join token, reimage token, or a host's bearer token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(String);

impl Token {
    /// Returns the secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Token {
    type Error = InvalidToken;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = (16..=256).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
        if fits { Ok(Self(text)) } else { Err(InvalidToken) }
    }
}

impl From<Token> for String {
    fn from(value: Token) -> Self {
        value.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl JsonSchema for Token {
    fn schema_name() -> Cow<'static, str> {
        "Token".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 16, "maxLength": 256, "writeOnly": true })
    }
}

/// A text that cannot be a token. It does not say which text, for it may be half a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the token is malformed: expected 16 to 256 printable ASCII characters without spaces")]
pub struct InvalidToken;

/// Body of `POST /v1/enroll`.
///
/// Repeating it with the same token, host id and boot id before the first check-in yields a fresh bearer token and counts
/// as one use, so that an answer lost on the way does not lock the host out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// A join token from an operator, or the single-use token that a reimage handed to this new system.
    pub token: Token,
    /// The slot's name as the host proposes it. With a token bound to a host it must be that host.
    pub host_id: HostId,
    /// The host's name, for people.
    pub hostname: String,
    /// The kernel's boot id.
    pub boot_id: BootId,
    /// What kind of machine it is, for people.
    pub machine: MachineFacts,
}

/// A few facts about a machine, for people who look at a list of hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MachineFacts {
    /// Such as `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// Such as `x86_64`.
    pub arch: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// Version of the agent.
    pub agent: String,
}

/// Answer to `POST /v1/enroll`, with 201.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnrollAnswer {
    /// The name to use from now on.
    pub host_id: HostId,
    /// Counts operating-system installs on this slot; given out by the endpoint.
    pub incarnation: u64,
    /// Bearer token for every later call. The endpoint keeps only its hash.
    pub token: Token,
    /// The reimage that this incarnation was born from, when the token was bound to one.
    #[serde(default)]
    pub reimage: Option<crate::ReimageStatus>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_bounded_and_never_wildcards() {
        let check = |text: &str, valid: bool| assert_eq!(text.parse::<HostId>().is_ok(), valid, "{text:?}");
        check("web-1.example.net", true);
        check("4c4c4544-0051:3", true);
        check("", false);
        check("*", false);
        check(".", false);
        check("../etc", false);
        check("-x", false);
        check("a b", false);
        check("a\n", false);
        check("é", false);
        check(&"a".repeat(128), true);
        check(&"a".repeat(129), false);
    }

    #[test]
    fn a_token_does_not_show_itself() {
        let token = Token::try_from("rkj_0123456789abcdef".to_owned()).unwrap();
        assert!(!format!("{token:?}").contains("0123"));
        assert_eq!(Token::try_from("short".to_owned()), Err(InvalidToken));
    }

    #[test]
    fn an_endpoint_refuses_unknown_keys() {
        let text =
            r#"{"token":"rkj_0123456789abcdef","host_id":"a","hostname":"a","boot_id":"b","machine":{},"sudo":1}"#;
        let error = serde_json::from_str::<EnrollRequest>(text).unwrap_err();
        assert!(error.to_string().contains("sudo"), "{error}");
    }
}
