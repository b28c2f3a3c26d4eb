//! The OpenAPI document, generated from the types so that it cannot disagree with them.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use crate::{
    CancelRequest, CheckIn, CheckInAnswer, EnrollAnswer, EnrollRequest, EvidenceAnswer, Problem, ReimageAsk,
    ReimageStatus,
};

/// Returns the OpenAPI 3.1 document of the protocol.
pub fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let generator = &mut generator;
    let id = json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } });
    let status = content::<ReimageStatus>(generator);
    let problem = generator.subschema_for::<Problem>().to_value();
    let paths = json!({
        "/v1/enroll": { "post": {
            "operationId": "enroll",
            "summary": "Exchange a join token for an identity",
            "security": [],
            "requestBody": content::<EnrollRequest>(generator),
            "responses": answers(&problem, &[("201", content::<EnrollAnswer>(generator))], &["403", "409", "422"]),
        }},
        "/v1/checkin": { "post": {
            "operationId": "checkin",
            "summary": "Report, and learn what is wanted",
            "requestBody": content::<CheckIn>(generator),
            "responses": answers(&problem, &[("200", content::<CheckInAnswer>(generator))], &["401", "409", "410", "422", "503"]),
        }},
        "/v1/reimages": { "post": {
            "operationId": "requestReimage",
            "summary": "Ask for this host to be reimaged",
            "parameters": [{ "name": "Idempotency-Key", "in": "header", "required": true, "schema": { "type": "string" } }],
            "requestBody": content::<ReimageAsk>(generator),
            "responses": answers(&problem, &[("201", status.clone()), ("200", status.clone())], &["401", "403", "409", "410", "422"]),
        }},
        "/v1/reimages/{id}": { "parameters": [id], "get": {
            "operationId": "getReimage",
            "summary": "Read a request's state; with `wait`, not before it differs from `If-None-Match`",
            "parameters": [
                { "name": "wait", "in": "query", "schema": { "type": "string", "examples": ["30s"] } },
                { "name": "If-None-Match", "in": "header", "schema": { "type": "string" } },
            ],
            "responses": answers(&problem, &[("200", status.clone()), ("304", json!({}))], &["401", "404", "410"]),
        }},
        "/v1/reimages/{id}/evidence": { "parameters": [id], "put": {
            "operationId": "putEvidence",
            "summary": "Store the dossier, JSON of at most 8 MiB",
            "parameters": [{ "name": "Content-Digest", "in": "header", "required": true, "schema": { "type": "string" } }],
            "requestBody": { "required": true, "content": { "application/json": { "schema": {} } } },
            "responses": answers(&problem, &[("201", content::<EvidenceAnswer>(generator))], &["401", "404", "409", "410", "413", "422"]),
        }},
        "/v1/reimages/{id}/ready": { "parameters": [id], "post": {
            "operationId": "ready",
            "summary": "Drained, evidence sent: the last point of no return",
            "responses": answers(&problem, &[("202", status.clone())], &["401", "404", "409", "410"]),
        }},
        "/v1/reimages/{id}/cancel": { "parameters": [id], "post": {
            "operationId": "cancel",
            "summary": "Converged after all",
            "requestBody": { "content": content::<CancelRequest>(generator)["content"] },
            "responses": answers(&problem, &[("200", status.clone())], &["401", "404", "409", "410"]),
        }},
        "/v1/reimages/{id}/complete": { "parameters": [id], "post": {
            "operationId": "complete",
            "summary": "The new incarnation converged",
            "responses": answers(&problem, &[("200", status)], &["401", "404", "409", "410"]),
        }},
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "rekindle phone home",
            "version": "1",
            "description": "What a rekindle agent says to its central endpoint.",
        },
        "security": [{ "host": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "host": { "type": "http", "scheme": "bearer" } },
            "schemas": generator.take_definitions(true),
        },
    })
}

/// Returns a request body or answer of one type.
fn content<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    let schema = generator.subschema_for::<T>();
    json!({ "required": true, "content": { "application/json": { "schema": schema } } })
}

/// Returns the `responses` object of a call: its answers, and problems for its error statuses.
fn answers(problem: &Value, good: &[(&str, Value)], bad: &[&str]) -> Value {
    let mut all = serde_json::Map::new();
    for (status, body) in good {
        let mut answer = json!({ "description": "answer" });
        if let (Some(answer), Some(content)) = (answer.as_object_mut(), body.get("content")) {
            answer.insert("content".to_owned(), content.clone());
        }
        all.insert((*status).to_owned(), answer);
    }
    for status in bad {
        all.insert(
            (*status).to_owned(),
            json!({ "description": "problem", "content": { crate::PROBLEM_TYPE: { "schema": problem } } }),
        );
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects every `$ref` in a document.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.push(target.clone());
                }
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_reference_resolves() {
        let document = openapi();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target} dangles");
        }
    }

    #[test]
    fn requests_are_closed_and_answers_are_open() {
        let document = openapi();
        let closed =
            |name: &str| document.pointer(&format!("/components/schemas/{name}/additionalProperties")).cloned();
        assert_eq!(closed("CheckIn"), Some(json!(false)));
        assert_eq!(closed("ReimageAsk"), Some(json!(false)));
        assert_eq!(closed("CheckInAnswer"), None);
        assert_eq!(closed("ReimageStatus"), None);
    }
}
