//! What JSON answers look like: the vocabulary of `telemetry_drift`. Pure.
//!
//! A [`Shape`] is what was seen: one answer, or many of them merged. A [`Schema`] is what follows from it, or what an
//! OpenAPI document says (`openapi.rs`): types, required fields, nullable, formats, closed sets of words, items of arrays,
//! and maps whose keys vary. [`Schema::check`] says which places of an answer do not fit.
//!
//! Everything is bounded: an answer is somebody else's text. Names of fields are carried as data, and escaped in a
//! [`Difference`].

mod format;
pub mod openapi;
mod schema;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use format::Format;
pub use schema::{Change, Difference, FieldRule, ObjectRule, Rest, Schema, TextRule};

/// Values looked at in one answer; what lies beyond is not judged.
const MAX_NODES: usize = 4_000;
/// Levels looked at.
const MAX_DEPTH: usize = 24;
/// Items looked at in one array.
const MAX_ITEMS: usize = 1_000;
/// Fields kept of one object; one that has more is a map.
const MAX_FIELDS: usize = 128;
/// Bytes of a field's name; an object with a longer one is a map.
const MAX_NAME: usize = 96;
/// Words that a closed set may have.
const MAX_WORDS: usize = 8;
/// Fields without any that is always there, or seen only once, from which on the names are taken to vary.
const VARYING: usize = 12;

/// What the values at one place look like.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Shape {
    /// Values seen here.
    pub seen: u64,
    /// Of them null.
    #[serde(skip_serializing_if = "is_zero")]
    pub null: u64,
    /// Of them true or false.
    #[serde(skip_serializing_if = "is_zero")]
    pub boolean: u64,
    /// Of them whole numbers.
    #[serde(skip_serializing_if = "is_zero")]
    pub integer: u64,
    /// Of them other numbers.
    #[serde(skip_serializing_if = "is_zero")]
    pub number: u64,
    /// The strings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string: Option<Text>,
    /// The arrays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<Array>,
    /// The objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// Some values were not looked into, because they lie too deep or are too many: everything fits here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unseen: bool,
}

/// Strings at one place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Text {
    /// How many.
    pub seen: u64,
    /// The format that all of them have.
    pub format: Option<Format>,
    /// Each of them with how often it was seen, while they are few and look like words; none: they are not.
    pub words: Option<BTreeMap<String, u64>>,
}

/// Arrays at one place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Array {
    /// How many.
    pub seen: u64,
    /// All their items in one.
    pub items: Box<Shape>,
}

/// Objects at one place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Object {
    /// How many.
    pub seen: u64,
    /// Their fields.
    pub fields: BTreeMap<String, Shape>,
    /// Their names vary: all values in one. Then `fields` is empty in what was learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<Box<Shape>>,
    /// More names come and go than are kept: a new one says nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Shape {
    /// The shape of one answer.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        let mut budget = MAX_NODES;
        Self::look(value, MAX_DEPTH, &mut budget)
    }

    fn look(value: &Value, depth: usize, budget: &mut usize) -> Self {
        let mut out = Self { seen: 1, ..Self::default() };
        if depth == 0 || *budget == 0 {
            out.unseen = true;
            return out;
        }
        *budget -= 1;
        match value {
            Value::Null => out.null = 1,
            Value::Bool(_) => out.boolean = 1,
            Value::Number(n) if n.is_i64() || n.is_u64() => out.integer = 1,
            Value::Number(_) => out.number = 1,
            Value::String(text) => out.string = Some(Text::of(text)),
            Value::Array(items) => {
                let mut all = Self::default();
                for item in items.iter().take(MAX_ITEMS) {
                    all.merge(&Self::look(item, depth - 1, budget));
                }
                out.array = Some(Array { seen: 1, items: Box::new(all) });
            }
            Value::Object(fields) => {
                let mut object = Object { seen: 1, ..Object::default() };
                let many = fields.len() > MAX_FIELDS || fields.keys().any(|name| name.len() > MAX_NAME);
                let mut all = Self::default();
                for (name, value) in fields.iter().take(MAX_ITEMS) {
                    let shape = Self::look(value, depth - 1, budget);
                    match many {
                        true => all.merge(&shape),
                        false => drop(object.fields.insert(name.clone(), shape)),
                    }
                }
                object.map = many.then(|| Box::new(all));
                out.object = Some(object);
            }
        }
        out
    }

    /// Takes in the values of `other`, as they are.
    fn merge(&mut self, other: &Self) {
        for (mine, more) in [
            (&mut self.seen, other.seen),
            (&mut self.null, other.null),
            (&mut self.boolean, other.boolean),
            (&mut self.integer, other.integer),
            (&mut self.number, other.number),
        ] {
            *mine = mine.saturating_add(more);
        }
        self.unseen |= other.unseen;
        match (&mut self.string, &other.string) {
            (Some(mine), Some(more)) => mine.merge(more),
            (mine @ None, more) => mine.clone_from(more),
            (Some(_), None) => {}
        }
        match (&mut self.array, &other.array) {
            (Some(mine), Some(more)) => {
                mine.seen = mine.seen.saturating_add(more.seen);
                mine.items.merge(&more.items);
            }
            (mine @ None, more) => mine.clone_from(more),
            (Some(_), None) => {}
        }
        match (&mut self.object, &other.object) {
            (Some(mine), Some(more)) => mine.merge(more),
            (mine @ None, more) => mine.clone_from(more),
            (Some(_), None) => {}
        }
    }

    /// Learns from one more answer: takes its values in, and finds out which objects are maps.
    pub fn absorb(&mut self, answer: &Self) {
        self.merge(answer);
        self.find_maps();
    }

    fn find_maps(&mut self) {
        if let Some(array) = &mut self.array {
            array.items.find_maps();
        }
        let Some(object) = &mut self.object else { return };
        if object.map.is_none() && object.names_vary() {
            let mut all = Self::default();
            for shape in std::mem::take(&mut object.fields).values() {
                all.merge(shape);
            }
            object.map = Some(Box::new(all));
        }
        let once = object.fields.values().filter(|field| field.seen == 1).count();
        if object.map.is_none() && object.seen > 1 && once >= VARYING {
            object.open = true;
            object.fields.retain(|_, field| field.seen > 1);
        }
        match &mut object.map {
            Some(all) => all.find_maps(),
            None => object.fields.values_mut().for_each(Self::find_maps),
        }
    }

    /// The rules that follow from what was seen.
    #[must_use]
    pub fn schema(&self) -> Schema {
        // What was only ever null, or never seen at all, has no type yet.
        let untyped = self.null == self.seen;
        Schema {
            anything: self.unseen || untyped,
            null: self.null > 0,
            boolean: self.boolean > 0,
            integer: self.integer > 0,
            number: self.number > 0,
            string: self.string.as_ref().map(Text::rule),
            array: self.array.as_ref().map(|array| Box::new(array.items.schema())),
            object: self.object.as_ref().map(Object::rule),
        }
    }
}

impl Text {
    fn of(text: &str) -> Self {
        let mut words = BTreeMap::new();
        if is_word(text) {
            words.insert(text.to_owned(), 1);
        }
        let words = (!words.is_empty()).then_some(words);
        Self { seen: 1, format: Format::of(text), words }
    }

    fn merge(&mut self, other: &Self) {
        self.seen = self.seen.saturating_add(other.seen);
        if self.format != other.format {
            self.format = None;
        }
        self.words = match (self.words.take(), &other.words) {
            (Some(mut mine), Some(more)) => {
                for (word, times) in more {
                    let mine = mine.entry(word.clone()).or_default();
                    *mine = mine.saturating_add(*times);
                }
                (mine.len() <= MAX_WORDS).then_some(mine)
            }
            _ => None,
        };
    }

    fn rule(&self) -> TextRule {
        // A set is closed when each of its words came often: then one more is news.
        let closed = self.words.as_ref().filter(|words| {
            self.format.is_none() && self.seen >= 20 && words.values().all(|times| *times >= 2)
        });
        TextRule { format: self.format, words: closed.map(|words| words.keys().cloned().collect()) }
    }
}

/// Whether `text` may be one of a closed set: an identifier, not prose and not a value of its own.
fn is_word(text: &str) -> bool {
    let mut chars = text.chars();
    text.len() <= 32
        && chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/'))
}

impl Object {
    fn merge(&mut self, other: &Self) {
        self.seen = self.seen.saturating_add(other.seen);
        self.open |= other.open;
        if self.map.is_none() && other.map.is_none() {
            for (name, shape) in &other.fields {
                let room = self.fields.len() < MAX_FIELDS;
                match self.fields.get_mut(name) {
                    Some(mine) => mine.merge(shape),
                    None if room => {
                        self.fields.insert(name.clone(), shape.clone());
                    }
                    None => self.open = true,
                }
            }
            return;
        }
        let mut all = self.map.take().unwrap_or_default();
        for shape in std::mem::take(&mut self.fields).values().chain(other.fields.values()) {
            all.merge(shape);
        }
        if let Some(more) = &other.map {
            all.merge(more);
        }
        self.map = Some(all);
    }

    /// Whether the names of the fields are values themselves, not names that a client knows.
    fn names_vary(&self) -> bool {
        let fields = &self.fields;
        if fields.is_empty() {
            return false;
        }
        let ids = fields.keys().all(|name| format::is_id(name));
        let never_sure =
            self.seen > 2 && fields.len() >= VARYING && fields.values().all(|f| f.seen < self.seen);
        ids || never_sure || self.alike()
    }

    /// Three or more objects with the same two or more fields below: a table with keys, not a record.
    fn alike(&self) -> bool {
        let mut names = self.fields.values().map(|shape| {
            let object = shape.object.as_ref().filter(|_| shape.null == 0 && shape.array.is_none())?;
            (object.fields.len() >= 2).then(|| object.fields.keys())
        });
        let Some(Some(first)) = names.next() else { return false };
        self.fields.len() >= 3 && names.all(|other| other.is_some_and(|other| other.eq(first.clone())))
    }

    fn rule(&self) -> ObjectRule {
        let fields = self.fields.iter().map(|(name, shape)| {
            (name.clone(), FieldRule { required: shape.seen >= self.seen, schema: shape.schema() })
        });
        ObjectRule {
            fields: fields.collect(),
            rest: match &self.map {
                Some(all) => Rest::Each(Box::new(all.schema())),
                None if self.open => Rest::Free,
                None => Rest::Told,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn learned(answers: &[Value]) -> Shape {
        let mut shape = Shape::default();
        for answer in answers {
            shape.absorb(&Shape::of(answer));
        }
        shape
    }

    /// What does not fit, in words.
    fn diff(answers: &[Value], answer: &Value) -> Vec<String> {
        learned(answers).schema().check(&Shape::of(answer), false).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_field_that_was_always_there_is_required_and_another_is_not() {
        let seen = [json!({"id": 1, "note": "x y"}), json!({"id": 2})];
        assert_eq!(diff(&seen, &json!({"id": 3})), [""; 0]);
        assert_eq!(diff(&seen, &json!({"note": "z z"})), ["/id: missing (was: integer, always there)"]);
    }

    #[test]
    fn types_nulls_and_items_are_told_with_their_place() {
        let seen = [json!({"data": [{"id": 1, "tags": ["a b"]}], "next": null})];
        for (answer, want) in [
            (json!({"data": [{"id": "1", "tags": []}], "next": null}), "/data/*/id: is string, was integer"),
            (
                json!({"data": [{"id": 1, "tags": [3]}], "next": null}),
                "/data/*/tags/*: is integer, was string",
            ),
            (json!({"data": {"id": 1}, "next": null}), "/data: is object, was array"),
            (json!({"data": null, "next": null}), "/data: is null, was array"),
            (
                json!({"data": [{"id": 1, "tags": []}, {"tags": []}], "next": null}),
                "/data/*/id: missing in 1 of 2 (was: integer, always there)",
            ),
            (json!([1]), ": is array, was object"),
        ] {
            assert_eq!(diff(&seen, &answer), [want], "{answer}");
        }
        // What was only ever null has no type to change.
        assert_eq!(diff(&seen, &json!({"data": [], "next": "page2"})), [""; 0]);
    }

    #[test]
    fn a_whole_number_may_become_another_one_and_that_is_told_as_news() {
        let found = learned(&[json!({"load": 0})]).schema().check(&Shape::of(&json!({"load": 0.5})), false);
        assert_eq!(found.len(), 1);
        assert!(!found[0].is_fault(), "{found:?}");
        let strict = learned(&[json!({"load": 0})]).schema().check(&Shape::of(&json!({"load": 0.5})), true);
        assert!(strict[0].is_fault(), "{strict:?}");
    }

    #[test]
    fn formats_are_learned_and_their_loss_is_told() {
        let seen = [
            json!({"at": "2026-01-02T03:04:05Z", "ip": "10.0.0.1"}),
            json!({"at": "2026-01-02T03:04:06.5+01:00", "ip": "10.0.0.2"}),
        ];
        assert_eq!(
            diff(&seen, &json!({"at": "yesterday", "ip": "10.0.0.3"})),
            ["/at: is no date-time any more"]
        );
        assert_eq!(
            diff(&seen, &json!({"at": "2027-01-02T03:04:05Z", "ip": "fe80::1"})),
            ["/ip: is ipv6, was ipv4"]
        );
    }

    #[test]
    fn a_small_set_of_words_is_closed_only_after_many() {
        let seen: Vec<Value> =
            (0..20).map(|i| json!({"state": if i % 2 == 0 { "up" } else { "down" }})).collect();
        assert_eq!(diff(&seen[..4], &json!({"state": "gone"})), [""; 0]);
        let found = learned(&seen).schema().check(&Shape::of(&json!({"state": "gone"})), false);
        assert_eq!(found[0].to_string(), "/state: \"gone\" is new, was one of down, up");
        assert!(!found[0].is_fault(), "a learned set proves nothing");
        let names: Vec<Value> = (0..40).map(|i| json!({"name": format!("n{i}")})).collect();
        assert_eq!(diff(&names, &json!({"name": "other"})), [""; 0]);
    }

    #[test]
    fn maps_are_known_by_their_keys_and_by_their_values() {
        let by_id = [json!({"8f14e45f-ceea-467f-a8ab-0d2f1c3b4a59": {"v": 1}}), json!({"17": {"v": 2}})];
        assert_eq!(diff(&by_id, &json!({"99": {"v": 3}})), [""; 0]);
        assert_eq!(diff(&by_id, &json!({"99": {"v": "x y"}})), ["/{}/v: is string, was integer"]);
        let table = [json!({"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 2}})];
        assert_eq!(diff(&table, &json!({"d": {"x": 1, "y": 1}})), [""; 0]);
        assert_eq!(diff(&table, &json!({"d": {"x": 1}})), ["/{}/y: missing (was: integer, always there)"]);
        let coming_and_going: Vec<Value> =
            (0..13).map(|i| json!({format!("job{i}x"): true, format!("job{}x", i + 1): true})).collect();
        assert_eq!(diff(&coming_and_going, &json!({"another": true})), [""; 0]);
    }

    #[test]
    fn new_fields_are_news_until_their_names_vary() {
        let found =
            learned(&[json!({"id": 1})]).schema().check(&Shape::of(&json!({"id": 1, "more": 2})), false);
        assert_eq!(found[0].to_string(), "/more: new, integer");
        assert!(!found[0].is_fault());
        let varying: Vec<Value> = (0..20).map(|i| json!({"id": 1, format!("k{i}q"): 2})).collect();
        assert_eq!(diff(&varying, &json!({"id": 1, "k99q": 2})), [""; 0]);
        assert_eq!(diff(&varying, &json!({"k99q": 2})), ["/id: missing (was: integer, always there)"]);
    }

    #[test]
    fn huge_and_deep_answers_are_bounded_and_not_judged_beyond() {
        let mut deep = json!(1);
        for _ in 0..100 {
            deep = json!({ "d": deep });
        }
        let wide = json!({"rows": (0..50_000).map(|i| json!({"i": i})).collect::<Vec<_>>(), "end": 1});
        let keys: serde_json::Map<String, Value> = (0..50_000).map(|i| (format!("k{i}"), json!(i))).collect();
        for answer in [deep, wide, Value::Object(keys), json!({"n".repeat(5_000): 1})] {
            let shape = Shape::of(&answer);
            let text = serde_json::to_string(&shape).unwrap();
            assert!(text.len() < 64 * 1024, "{} bytes", text.len());
            assert_eq!(learned(std::slice::from_ref(&answer)).schema().check(&shape, false), []);
            assert_eq!(serde_json::from_str::<Shape>(&text).unwrap(), shape);
        }
    }

    #[test]
    fn names_are_escaped_in_pointers() {
        let found = diff(&[json!({"a/b~\u{1b}[31m": 1})], &json!({}));
        assert_eq!(found, ["/a~1b~0\\u{1b}[31m: missing (was: integer, always there)"]);
    }
}
