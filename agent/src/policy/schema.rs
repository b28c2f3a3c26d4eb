//! The shape of a policy: one table of kinds and attributes, from which both the JSON Schema for editors and the reader here are made.
//!
//! `read` reports every unknown key and every value of a wrong type, with its place, and hands on only what has the right
//! shape. What a value means is decided in [`super::compile`].

mod attributes;
mod closest;
mod read;

use serde_json::{Map, Value, json};

pub(super) use attributes::{WITH_ABSENT, is_common};
pub(super) use closest::{closest, closest_path};
pub(super) use read::{Field, Fields, Text, read_include, read_kind, read_policy, read_resource};

use self::attributes::{INCLUDE, INCLUDE_DOC, INCLUDES, POLICY, PROOF, attributes, own_attributes};
use crate::resource::Kind;

/// What a value may look like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// A string.
    Text,
    /// `true` or `false`.
    Bool,
    /// A numeric user or group id.
    Id,
    /// A name or a numeric id.
    Account,
    /// An array of strings.
    Texts,
    /// One of these strings.
    Word(&'static [&'static str]),
    /// `true`, `false` or one of these strings.
    Switch(&'static [&'static str]),
    /// A whole number from 1 up.
    Count,
    /// An array of exit codes.
    Codes,
    /// A table of strings with any keys.
    Environment,
    /// The path of a file of the policy, or an array of strings.
    List,
    /// A date, or a time.
    Date,
    /// A table with these keys.
    Table(&'static [Attribute]),
    /// A string or an integer.
    Scalar,
    /// Values by key, or by section and key; [`super::compile`] looks at them more closely.
    Values,
    /// Names, or names by section; [`super::compile`] looks at them more closely.
    Names,
    /// `endpoint`, `ssh`, or a command.
    Proof,
    /// Files to include; `read_include` looks at it more closely.
    Includes,
}

impl Shape {
    fn describe(self) -> String {
        match self {
            Self::Text => "a string".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Id => "a number from 0 to 4294967294".to_owned(),
            Self::Account => "a name or a number from 0 to 4294967294".to_owned(),
            Self::Texts => "an array of strings".to_owned(),
            Self::Codes => "an array of numbers from 0 to 255".to_owned(),
            Self::List => "the path of a file of the policy, or an array of strings".to_owned(),
            Self::Environment => "a table of strings".to_owned(),
            Self::Date => "a date such as 2027-03-01, without quotes".to_owned(),
            Self::Word(words) => format!("one of {}", quoted(words.iter().copied())),
            Self::Switch(words) => format!("true, false or one of {}", quoted(words.iter().copied())),
            Self::Count => format!("a number from 1 to {MAX_COUNT}"),
            Self::Table(attributes) => {
                format!("a table with {}", quoted(attributes.iter().map(|attribute| attribute.name)))
            }
            Self::Scalar => "a string or a whole number".to_owned(),
            Self::Values => "a table of values".to_owned(),
            Self::Names => "an array of strings, or a table of such arrays by section".to_owned(),
            Self::Proof => PROOF.to_owned(),
            Self::Includes => INCLUDES.to_owned(),
        }
    }

    fn to_json(self) -> Value {
        match self {
            Self::Text => json!({ "type": "string" }),
            Self::Bool => json!({ "type": "boolean" }),
            Self::Id => json!({ "type": "integer", "minimum": 0, "maximum": MAX_ID }),
            Self::Account => json!({ "anyOf": [Self::Text.to_json(), Self::Id.to_json()] }),
            Self::Texts => json!({ "type": "array", "items": Self::Text.to_json() }),
            Self::Codes => {
                json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 255 }, "minItems": 1 })
            }
            Self::List => json!({ "anyOf": [Self::Text.to_json(), Self::Texts.to_json()] }),
            Self::Environment => json!({ "type": "object", "additionalProperties": Self::Text.to_json() }),
            Self::Date => json!({ "type": "string", "description": "A date or a time with its zone, without quotes." }),
            Self::Word(words) => json!({ "enum": words }),
            Self::Switch(words) => json!({ "anyOf": [Self::Bool.to_json(), Self::Word(words).to_json()] }),
            Self::Count => json!({ "type": "integer", "minimum": 1, "maximum": MAX_COUNT }),
            Self::Table(attributes) => table_to_json(attributes.iter()),
            Self::Scalar => json!({ "type": ["string", "integer"] }),
            Self::Values => {
                let scalar = json!({ "type": ["string", "integer", "boolean"] });
                let value = json!({ "anyOf": [scalar.clone(), { "type": "array", "items": scalar }] });
                let section = json!({ "type": "object", "additionalProperties": value.clone() });
                json!({ "type": "object", "additionalProperties": { "anyOf": [value, section] } })
            }
            Self::Names => {
                let names = Self::Texts.to_json();
                json!({ "anyOf": [names.clone(), { "type": "object", "additionalProperties": names }] })
            }
            Self::Proof => json!({ "anyOf": [{ "enum": ["endpoint", "ssh"] }, Self::Texts.to_json()] }),
            Self::Includes => {
                let mut include = table_to_json(INCLUDE.iter());
                if let Some(include) = include.as_object_mut() {
                    include.insert("required".to_owned(), json!(["path"]));
                }
                json!({ "type": "array", "items": { "anyOf": [Self::Text.to_json(), include] } })
            }
        }
    }
}

/// Above it is `-1`, which the system calls read as "leave it".
const MAX_ID: u32 = u32::MAX - 1;

/// Largest number of things.
const MAX_COUNT: u32 = 1_000_000_000;

/// One key of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute {
    pub(super) name: &'static str,
    shape: Shape,
    doc: &'static str,
}

const fn attribute(name: &'static str, shape: Shape, doc: &'static str) -> Attribute {
    Attribute { name, shape, doc }
}

/// An attribute whose value is one short text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Simple {
    /// A string.
    Text,
    /// A number.
    Number,
    /// A name, or a number.
    Account,
    /// `true` or `false`.
    Bool,
}

/// What an attribute looks like; `None` for a list, a table, or one that the kind does not have.
pub(super) fn simple_shape(kind: Kind, name: &str) -> Option<Simple> {
    let attribute = attributes(kind).find(|attribute| attribute.name == name)?;
    match attribute.shape {
        Shape::Text | Shape::Word(_) | Shape::Scalar => Some(Simple::Text),
        Shape::Id | Shape::Count => Some(Simple::Number),
        Shape::Account => Some(Simple::Account),
        Shape::Bool => Some(Simple::Bool),
        Shape::Texts
        | Shape::Table(_)
        | Shape::Values
        | Shape::Names
        | Shape::Proof
        | Shape::Codes
        | Shape::Environment
        | Shape::List
        | Shape::Date
        | Shape::Includes
        | Shape::Switch(_) => None,
    }
}

/// Returns the JSON Schema (2020-12) of a policy's TOML files, for editors.
pub fn json_schema() -> Value {
    let mut properties = Map::new();
    let mut policy = table_to_json(POLICY.iter());
    describe(&mut policy, "The policy as a whole. Only in policy.toml.");
    properties.insert("policy".to_owned(), policy);
    let mut include = Shape::Includes.to_json();
    describe(&mut include, INCLUDE_DOC);
    properties.insert("include".to_owned(), include);
    properties.insert(
        "vars".to_owned(),
        json!({
            "type": "object",
            "description": "Variables. A table in it, `vars.<role>`, overrides them for hosts with that role. Only in policy.toml.",
        }),
    );
    for kind in Kind::ALL {
        let resource = table_to_json(attributes(kind));
        let doc = own_attributes(kind).1;
        properties.insert(
            kind.as_str().to_owned(),
            json!({ "type": "object", "description": doc, "additionalProperties": resource }),
        );
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rekindle policy",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

fn table_to_json<'a>(attributes: impl Iterator<Item = &'a Attribute>) -> Value {
    let properties: Map<String, Value> = attributes
        .map(|attribute| {
            let mut value = attribute.shape.to_json();
            describe(&mut value, attribute.doc);
            (attribute.name.to_owned(), value)
        })
        .collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn describe(schema: &mut Value, doc: &str) {
    if let Some(object) = schema.as_object_mut() {
        object.insert("description".to_owned(), Value::from(doc));
    }
}

fn quoted<'k>(words: impl Iterator<Item = &'k str>) -> String {
    words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
