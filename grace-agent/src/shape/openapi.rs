//! What an OpenAPI 3 document says about the answers of one operation. Pure: the document is parsed already.

use serde_json::{Map, Value};

use super::{FieldRule, Format, ObjectRule, Rest, Schema, TextRule};

/// Schemas below schemas that are followed; what lies deeper, or goes in a circle, is not judged.
const MAX_DEPTH: usize = 24;
/// Schemas followed in all.
const MAX_NODES: usize = 4_000;

/// Why a document does not say what an answer must look like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenApiError {
    /// It is another version, or no OpenAPI document.
    #[error("is not an OpenAPI 3 document: it has no `openapi: 3.…` on top")]
    NotOpenApi,
    /// No path of it fits.
    #[error("has no path for {path}: it has {there}")]
    NoPath {
        /// The path of the URL.
        path: String,
        /// The first few that it has.
        there: String,
    },
    /// The path has no such method.
    #[error("has no {method} for {path}")]
    NoMethod {
        /// In lower case.
        method: String,
        /// The path of the URL.
        path: String,
    },
    /// The operation declares no JSON for a good answer.
    #[error("declares no JSON schema for a good answer of {method} {path}")]
    NoSchema {
        /// In lower case.
        method: String,
        /// The path of the URL.
        path: String,
    },
}

/// The schema of a good answer of `method` at `path` (of the URL, with its leading `/`).
///
/// # Errors
/// Where the document does not declare one.
pub fn answer(doc: &Value, method: &str, path: &str) -> Result<Schema, OpenApiError> {
    let version = doc.get("openapi").and_then(Value::as_str).unwrap_or_default();
    let paths = doc.get("paths").and_then(Value::as_object);
    let Some(paths) = paths.filter(|_| version.starts_with("3.")) else {
        return Err(OpenApiError::NotOpenApi);
    };
    let method = method.to_ascii_lowercase();
    let path_shown: String = path.chars().take(200).flat_map(char::escape_debug).collect();
    let found = bases(doc)
        .iter()
        .filter_map(|base| path.strip_prefix(base.as_str()))
        .filter_map(|rest| find(paths, rest))
        .min_by_key(|(variables, _)| *variables);
    let Some((_, item)) = found else {
        let there: Vec<String> =
            paths.keys().take(5).map(|p| p.chars().take(80).flat_map(char::escape_debug).collect()).collect();
        return Err(OpenApiError::NoPath { path: path_shown, there: there.join(", ") });
    };
    let operation = resolve(doc, item).get(&method).map(|operation| resolve(doc, operation));
    let Some(operation) = operation else { return Err(OpenApiError::NoMethod { method, path: path_shown }) };
    let schema = good_answer(operation).map(|answer| resolve(doc, answer)).and_then(|answer| {
        let content = answer.get("content")?.as_object()?;
        let json = |kind: &&String| kind.contains("json");
        let kind = content.keys().find(|k| *k == "application/json").or_else(|| content.keys().find(json))?;
        content.get(kind)?.get("schema")
    });
    let Some(schema) = schema else { return Err(OpenApiError::NoSchema { method, path: path_shown }) };
    let mut budget = MAX_NODES;
    Ok(read(doc, schema, MAX_DEPTH, &mut budget))
}

/// What the servers' URLs put before the paths, the longest first, and nothing.
fn bases(doc: &Value) -> Vec<String> {
    let servers = doc.get("servers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut out: Vec<String> = servers
        .iter()
        .filter_map(|server| server.get("url")?.as_str())
        .map(|url| {
            let path = match url.split_once("://") {
                Some((_, rest)) => rest.find('/').map_or("", |at| rest.get(at..).unwrap_or("")),
                None => url,
            };
            path.trim_end_matches('/').to_owned()
        })
        .chain([String::new()])
        .collect();
    out.sort_by_key(|base| std::cmp::Reverse(base.len()));
    out
}

/// The path item for `path`, and how many of its parts are variables: the fewer, the better it fits.
fn find<'a>(paths: &'a Map<String, Value>, path: &str) -> Option<(usize, &'a Value)> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let fits = |template: &str| {
        let template: Vec<&str> = template.trim_matches('/').split('/').collect();
        let variable = |part: &str| part.starts_with('{') && part.ends_with('}');
        let same = template.len() == parts.len()
            && template.iter().zip(&parts).all(|(t, p)| t == p || (variable(t) && !p.is_empty()));
        same.then(|| template.iter().filter(|t| variable(t)).count())
    };
    paths.iter().filter_map(|(template, item)| Some((fits(template)?, item))).min_by_key(|(n, _)| *n)
}

fn good_answer(operation: &Value) -> Option<&Value> {
    let answers = operation.get("responses")?.as_object()?;
    let good = answers.iter().find(|(code, _)| code.starts_with('2')).map(|(_, answer)| answer);
    answers.get("200").or(good).or_else(|| answers.get("default"))
}

/// `value`, or what its `$ref` into this document points at. References to other files are not followed.
fn resolve<'a>(doc: &'a Value, value: &'a Value) -> &'a Value {
    let mut value = value;
    // A chain of references that is longer goes in a circle.
    for _ in 0..16 {
        let Some(target) = value.get("$ref").and_then(Value::as_str) else { return value };
        match target.strip_prefix('#').and_then(|pointer| doc.pointer(pointer)) {
            Some(next) => value = next,
            None => return &Value::Null,
        }
    }
    &Value::Null
}

fn read(doc: &Value, schema: &Value, depth: usize, budget: &mut usize) -> Schema {
    let schema = resolve(doc, schema);
    let Some(rules) = schema.as_object().filter(|_| depth > 0 && *budget > 0) else {
        return Schema::anything();
    };
    *budget -= 1;
    let depth = depth - 1;
    let list = |key: &str| rules.get(key).and_then(Value::as_array);
    let mut out = own(doc, rules, depth, budget);
    if let Some(parts) = list("allOf") {
        for part in parts {
            out = and(out, read(doc, part, depth, budget));
        }
    }
    if let Some(choices) = list("oneOf").or_else(|| list("anyOf")) {
        let choices = choices.iter().map(|choice| read(doc, choice, depth, budget)).reduce(Schema::or);
        out = and(out, choices.unwrap_or_else(Schema::anything));
    }
    if rules.get("nullable").and_then(Value::as_bool) == Some(true) {
        out.null = true;
    }
    out
}

/// What the schema says itself, without its `allOf`, `oneOf` and `anyOf`.
fn own(doc: &Value, rules: &Map<String, Value>, depth: usize, budget: &mut usize) -> Schema {
    let kinds: Vec<&str> = match rules.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ if rules.contains_key("properties") => vec!["object"],
        _ if rules.contains_key("items") => vec!["array"],
        _ => match rules.get("enum").and_then(Value::as_array) {
            Some(values) if values.iter().all(Value::is_string) => vec!["string"],
            _ => return Schema::anything(),
        },
    };
    let has = |kind: &str| kinds.contains(&kind);
    Schema {
        anything: false,
        null: has("null"),
        boolean: has("boolean"),
        integer: has("integer") || has("number"),
        number: has("number"),
        string: has("string").then(|| TextRule {
            format: rules.get("format").and_then(Value::as_str).and_then(Format::named),
            words: words(rules),
        }),
        array: has("array").then(|| {
            let items = rules.get("items");
            Box::new(items.map_or_else(Schema::anything, |items| read(doc, items, depth, budget)))
        }),
        object: has("object").then(|| object(doc, rules, depth, budget)),
    }
}

fn words(rules: &Map<String, Value>) -> Option<std::collections::BTreeSet<String>> {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    match (rules.get("enum").and_then(Value::as_array), rules.get("const")) {
        (Some(values), _) => values.iter().filter(|v| !v.is_null()).map(word).collect(),
        (None, Some(value)) => word(value).map(|one| [one].into()),
        (None, None) => None,
    }
}

fn object(doc: &Value, rules: &Map<String, Value>, depth: usize, budget: &mut usize) -> ObjectRule {
    let required: Vec<&str> = rules
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let fields = rules.get("properties").and_then(Value::as_object).into_iter().flatten();
    let mut fields: std::collections::BTreeMap<String, FieldRule> = fields
        .map(|(name, schema)| {
            let schema = read(doc, schema, depth, budget);
            (name.clone(), FieldRule { required: required.contains(&name.as_str()), schema })
        })
        .collect();
    for name in required {
        fields
            .entry(name.to_owned())
            .or_insert_with(|| FieldRule { required: true, schema: Schema::anything() });
    }
    let rest = match rules.get("additionalProperties") {
        Some(schema @ Value::Object(_)) => Rest::Each(Box::new(read(doc, schema, depth, budget))),
        Some(Value::Bool(true)) => Rest::Free,
        // Without a word the document allows more; that there is more is news all the same.
        _ if fields.is_empty() => Rest::Free,
        _ => Rest::Told,
    };
    ObjectRule { fields, rest }
}

/// What fits both.
fn and(a: Schema, b: Schema) -> Schema {
    if a.anything {
        return b;
    }
    if b.anything {
        return a;
    }
    let object = a.object.zip(b.object).map(|(mut a, b)| {
        for (name, rule) in b.fields {
            let both = match a.fields.remove(&name) {
                Some(mine) => FieldRule {
                    required: mine.required || rule.required,
                    schema: and(mine.schema, rule.schema),
                },
                None => rule,
            };
            a.fields.insert(name, both);
        }
        let rest = match (a.rest, b.rest) {
            (Rest::Free, rest) | (rest, Rest::Free) if a.fields.is_empty() => rest,
            (Rest::Each(each), _) | (_, Rest::Each(each)) => Rest::Each(each),
            _ => Rest::Told,
        };
        ObjectRule { fields: a.fields, rest }
    });
    Schema {
        anything: false,
        null: a.null && b.null,
        boolean: a.boolean && b.boolean,
        integer: a.integer && b.integer,
        number: a.number && b.number,
        string: a.string.zip(b.string).map(|(a, b)| TextRule {
            format: a.format.or(b.format),
            words: match (a.words, b.words) {
                (Some(a), Some(b)) => Some(a.intersection(&b).cloned().collect()),
                (a, b) => a.or(b),
            },
        }),
        array: a.array.zip(b.array).map(|(a, b)| Box::new(and(*a, *b))),
        object,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shape::Shape;

    fn doc() -> Value {
        json!({
            "openapi": "3.0.3",
            "servers": [{"url": "http://h:1/api"}],
            "paths": {
                "/models/{id}": {"get": {"responses": {"200": {"$ref": "#/components/responses/Model"}}}},
                "/models/all": {"get": {"responses": {"2XX": {"content": {"application/json": {"schema":
                    {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}}}}}}},
                "/tree": {"get": {"responses": {"default": {"content": {"application/vnd.x+json": {"schema":
                    {"$ref": "#/components/schemas/Tree"}}}}}}},
                "/text": {"get": {"responses": {"200": {"content": {"text/plain": {}}}}}}
            },
            "components": {
                "responses": {"Model": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Model"}}}}},
                "schemas": {
                    "Base": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string", "format": "uuid"}}},
                    "Model": {"allOf": [{"$ref": "#/components/schemas/Base"}, {"type": "object", "required": ["state"], "properties": {
                        "state": {"type": "string", "enum": ["up", "down"]},
                        "load": {"type": "number"},
                        "note": {"type": "string", "nullable": true},
                        "owner": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
                        "tags": {"type": "object", "additionalProperties": {"type": "string"}}}}]},
                    "Tree": {"type": "object", "properties": {"child": {"$ref": "#/components/schemas/Tree"}}}
                }
            }
        })
    }

    fn diff(schema: &Schema, answer: &Value) -> Vec<String> {
        schema.check(&Shape::of(answer), true).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_operation_is_found_and_its_references_are_followed() {
        let id = "8f14e45f-ceea-467f-a8ab-0d2f1c3b4a59";
        let schema = answer(&doc(), "GET", "/api/models/7").unwrap();
        let good = json!({"id": id, "state": "up", "load": 1, "note": null, "owner": 3, "tags": {"a": "b"}});
        assert_eq!(diff(&schema, &good), [""; 0]);
        for (answer, want) in [
            (json!({"id": id}), "/state: missing (was: string, always there)"),
            (json!({"id": "7", "state": "up"}), "/id: is no uuid any more"),
            (json!({"id": id, "state": "gone"}), "/state: \"gone\" is new, was one of down, up"),
            (json!({"id": id, "state": "up", "owner": true}), "/owner: is boolean, was integer or string"),
            (json!({"id": id, "state": "up", "tags": {"x": 1}}), "/tags/{}: is integer, was string"),
        ] {
            assert_eq!(diff(&schema, &answer), [want], "{answer}");
        }
        // A path without variables fits better, and servers may be named or not.
        let all = super::answer(&doc(), "get", "/models/all").unwrap();
        assert_eq!(diff(&all, &json!([{"state": "up"}])), ["/*/id: missing (was: uuid, always there)"]);
    }

    #[test]
    fn what_goes_in_a_circle_ends() {
        let schema = answer(&doc(), "get", "/tree").unwrap();
        assert_eq!(diff(&schema, &json!({"child": {"child": {}}})), [""; 0]);
        assert_eq!(diff(&schema, &json!({"child": {"child": 1}})), ["/child/child: is integer, was object"]);
        let circle = json!({"openapi": "3.1.0", "paths": {"/a": {"get": {"$ref": "#/paths/~1a/get"}}}});
        assert!(matches!(answer(&circle, "get", "/a"), Err(OpenApiError::NoSchema { .. })));
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert_eq!(answer(&json!({"swagger": "2.0"}), "get", "/"), Err(OpenApiError::NotOpenApi));
        assert!(matches!(answer(&doc(), "get", "/none"), Err(OpenApiError::NoPath { .. })));
        assert!(matches!(answer(&doc(), "post", "/api/tree"), Err(OpenApiError::NoMethod { .. })));
        assert!(matches!(answer(&doc(), "get", "/text"), Err(OpenApiError::NoSchema { .. })));
        assert_eq!(answer(&json!([1]), "get", "/"), Err(OpenApiError::NotOpenApi));
    }
}
