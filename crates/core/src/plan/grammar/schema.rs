//! The grammar as a JSON Schema, for editors.
//!
//! Invariant: it accepts every plan that the parser accepts; it may accept more.

use serde_json::{Map, Value, json};

use super::{Choice, PLAN, Table, Type, tables};
use crate::plan::text;

/// The whole language as one schema (draft 2020-12).
pub fn json_schema() -> Value {
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("lifeboat plan"));
    schema.extend(table(&PLAN, ""));
    Value::Object(schema)
}

fn table(rule: &Table, doc: &str) -> Map<String, Value> {
    let mut schema = Map::new();
    let description = [doc, rule.doc].iter().filter(|text| !text.is_empty()).copied().collect::<Vec<_>>().join(" ");
    if !description.is_empty() {
        schema.insert("description".to_owned(), json!(description));
    }
    schema.insert("type".to_owned(), json!("object"));
    let properties: Map<String, Value> = rule
        .keys
        .iter()
        .map(|key| {
            let mut property = of(&key.is, key.doc);
            if let (Value::Object(property), Some(default)) = (&mut property, key.default) {
                property.insert("default".to_owned(), serde_json::from_str(default).unwrap_or(json!(default)));
            }
            (key.name.to_owned(), property)
        })
        .collect();
    schema.insert("properties".to_owned(), Value::Object(properties));
    // Files that are included hold parts, and what is missing in one may stand in another: only below the top is it asked for.
    let required: Vec<&str> = rule.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    if !required.is_empty() && !std::ptr::eq(rule, &PLAN) {
        schema.insert("required".to_owned(), json!(required));
    }
    schema.insert("additionalProperties".to_owned(), json!(false));
    let choices: Vec<Value> = rule.choices.iter().map(choice).collect();
    if !choices.is_empty() {
        schema.insert("allOf".to_owned(), Value::Array(choices));
    }
    schema
}

fn choice(choice: &Choice) -> Value {
    let mut ways: Vec<Value> = choice.of.iter().map(|key| json!({ "required": [key] })).collect();
    if choice.may_be_none {
        ways.push(json!({ "not": { "anyOf": ways.clone() } }));
    }
    json!({ "oneOf": ways })
}

fn of(is: &Type, doc: &str) -> Value {
    let mut schema = match is {
        Type::Text(kind) => text_schema(*kind),
        Type::Word(words) => json!({ "enum": words.iter().map(|(word, _)| *word).collect::<Vec<_>>() }),
        Type::Bool => json!({ "type": "boolean" }),
        Type::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Type::Number => json!({ "type": "number", "minimum": 0 }),
        Type::List { of: item, may_be_empty } => {
            json!({ "type": "array", "items": of(item, ""), "minItems": usize::from(!may_be_empty) })
        }
        Type::OneOrMany(item) => {
            json!({ "anyOf": [of(item, ""), { "type": "array", "items": of(item, ""), "minItems": 1 }] })
        }
        Type::Secret => Value::Object(table(&tables::SECRET, "")),
        Type::Value => json!({ "anyOf": [{ "type": "string" }, Value::Object(table(&tables::SECRET, ""))] }),
        Type::Table(rule) => return Value::Object(table(rule, doc)),
        Type::Named { names, of: value, .. } => {
            let mut schema = json!({ "type": "object", "additionalProperties": of(value, "") });
            if let (Value::Object(schema), true) = (&mut schema, *names) {
                schema.insert("propertyNames".to_owned(), json!({ "pattern": text::NAME_PATTERN }));
            }
            schema
        }
    };
    if let (Value::Object(schema), false) = (&mut schema, doc.is_empty()) {
        schema.insert("description".to_owned(), json!(doc));
    }
    schema
}

fn text_schema(kind: text::Kind) -> Value {
    match kind.pattern() {
        Some(pattern) => json!({ "type": "string", "pattern": pattern }),
        None => json!({ "type": "string", "minLength": 1 }),
    }
}
