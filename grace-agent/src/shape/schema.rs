//! Rules for answers, and which places of one do not fit them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Format, Object, Shape, Text};

/// Differences told of one answer; more help nobody.
const MAX_DIFFERENCES: usize = 50;

/// What a value must look like. Nothing set: no value fits, unless `anything` is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Schema {
    /// Everything fits.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub anything: bool,
    /// null fits.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub null: bool,
    /// true and false fit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub boolean: bool,
    /// Whole numbers fit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub integer: bool,
    /// All numbers fit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub number: bool,
    /// Strings fit, where they follow this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string: Option<TextRule>,
    /// Arrays fit, where their items follow this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<Box<Schema>>,
    /// Objects fit, where they follow this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectRule>,
}

/// What a string must look like.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct TextRule {
    /// Its format.
    pub format: Option<Format>,
    /// The words that there are.
    pub words: Option<BTreeSet<String>>,
}

/// What an object must look like.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ObjectRule {
    /// The fields that are known.
    pub fields: BTreeMap<String, FieldRule>,
    /// What about others.
    pub rest: Rest,
}

/// A known field.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FieldRule {
    /// It must be there.
    pub required: bool,
    /// What it must look like.
    pub schema: Schema,
}

/// What about fields that are not known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// They are news.
    #[default]
    Told,
    /// They say nothing.
    Free,
    /// The names vary: each value must look like this.
    Each(Box<Schema>),
}

/// One place that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// JSON pointer; `*` stands for the items of an array, `{}` for the values of a map. Escaped.
    pub at: String,
    /// What is different.
    pub change: Change,
    /// A client that was made for the old shape fails on it.
    fault: bool,
}

/// What is different at a place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A field that was always there is not.
    Missing {
        /// In how many of how many objects.
        of: (u64, u64),
        /// What it was.
        was: String,
    },
    /// A field that was never there is.
    New {
        /// What it is.
        is: String,
    },
    /// Its type.
    Type {
        /// What it was.
        was: String,
        /// What it is.
        is: String,
    },
    /// The format of a string.
    Format {
        /// What it was.
        was: &'static str,
        /// What it is.
        is: Option<&'static str>,
    },
    /// A word outside of the closed set.
    Word {
        /// The word, escaped.
        is: String,
        /// The set, escaped.
        was: String,
    },
}

impl Difference {
    /// True where a client that was made for the old shape fails; false for what is only news.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        self.fault
    }

    /// True where a field is there that was not.
    #[must_use]
    pub fn is_new_field(&self) -> bool {
        matches!(self.change, Change::New { .. })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        match &self.change {
            Change::Missing { of: (_, 1), was } => write!(f, "missing (was: {was}, always there)"),
            Change::Missing { of: (n, all), was } if n == all => {
                write!(f, "missing in all {all} (was: {was}, always there)")
            }
            Change::Missing { of: (n, all), was } => {
                write!(f, "missing in {n} of {all} (was: {was}, always there)")
            }
            Change::New { is } => write!(f, "new, {is}"),
            Change::Type { was, is } => write!(f, "is {is}, was {was}"),
            Change::Format { was, is: Some(is) } => write!(f, "is {is}, was {was}"),
            Change::Format { was, is: None } => write!(f, "is no {was} any more"),
            Change::Word { is, was } => write!(f, "\"{is}\" is new, was one of {was}"),
        }
    }
}

impl Schema {
    /// Everything fits.
    #[must_use]
    pub fn anything() -> Self {
        Self { anything: true, ..Self::default() }
    }

    /// Where `answer` does not fit. `strict`: the rules were declared, not learned, so what is only unlikely to matter
    /// (a word outside of the set, a fraction where whole numbers were) is a fault, too.
    #[must_use]
    pub fn check(&self, answer: &Shape, strict: bool) -> Vec<Difference> {
        let mut check = Check { strict, out: Vec::new() };
        check.value(self, answer, &mut String::new());
        check.out
    }

    /// Also all that fits `other`.
    #[must_use]
    pub(super) fn or(mut self, other: Self) -> Self {
        self.anything |= other.anything;
        self.null |= other.null;
        self.boolean |= other.boolean;
        self.integer |= other.integer;
        self.number |= other.number;
        self.string = match (self.string, other.string) {
            (Some(a), Some(b)) => Some(TextRule {
                format: a.format.filter(|f| b.format == Some(*f)),
                words: a.words.zip(b.words).map(|(a, b)| a.union(&b).cloned().collect()),
            }),
            (a, b) => a.or(b),
        };
        self.array = match (self.array, other.array) {
            (Some(a), Some(b)) => Some(Box::new(a.or(*b))),
            (a, b) => a.or(b),
        };
        self.object = match (self.object, other.object) {
            (Some(a), Some(b)) => Some(a.or(b)),
            (a, b) => a.or(b),
        };
        self
    }

    /// Its types in words: `integer or null`.
    #[must_use]
    pub fn words(&self) -> String {
        if self.anything {
            return "anything".to_owned();
        }
        let string = match &self.string {
            Some(TextRule { format: Some(format), .. }) => format.name(),
            _ => "string",
        };
        let names = [
            (self.boolean, "boolean"),
            (self.integer && !self.number, "integer"),
            (self.number, "number"),
            (self.string.is_some(), string),
            (self.array.is_some(), "array"),
            (self.object.is_some(), "object"),
            (self.null, "null"),
        ];
        let names: Vec<&str> = names.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(" or ") }
    }

    /// As a JSON Schema document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.anything {
            return Value::Object(out);
        }
        let kinds = [
            (self.null, "null"),
            (self.boolean, "boolean"),
            (self.integer && !self.number, "integer"),
            (self.number, "number"),
            (self.string.is_some(), "string"),
            (self.array.is_some(), "array"),
            (self.object.is_some(), "object"),
        ];
        let mut kinds: Vec<&str> = kinds.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
        let kind = if kinds.len() == 1 { json!(kinds.remove(0)) } else { json!(kinds) };
        out.insert("type".into(), kind);
        if let Some(rule) = &self.string {
            out.extend(rule.format.map(|format| ("format".to_owned(), json!(format.name()))));
            out.extend(rule.words.as_ref().map(|words| ("enum".to_owned(), json!(words))));
        }
        out.extend(self.array.as_ref().map(|items| ("items".to_owned(), items.to_json())));
        if let Some(rule) = &self.object {
            let required: Vec<&String> =
                rule.fields.iter().filter(|(_, f)| f.required).map(|(name, _)| name).collect();
            let fields: Map<String, Value> =
                rule.fields.iter().map(|(name, f)| (name.clone(), f.schema.to_json())).collect();
            out.insert("properties".into(), Value::Object(fields));
            out.insert("required".into(), json!(required));
            if let Rest::Each(each) = &rule.rest {
                out.insert("additionalProperties".into(), each.to_json());
            }
        }
        Value::Object(out)
    }
}

impl ObjectRule {
    fn or(mut self, mut other: Self) -> Self {
        let names: BTreeSet<String> = self.fields.keys().chain(other.fields.keys()).cloned().collect();
        let fields = names.into_iter().map(|name| {
            let rule = match (self.fields.remove(&name), other.fields.remove(&name)) {
                (Some(a), Some(b)) => {
                    FieldRule { required: a.required && b.required, schema: a.schema.or(b.schema) }
                }
                (a, b) => FieldRule { required: false, ..a.or(b).unwrap_or_default() },
            };
            (name, rule)
        });
        let fields = fields.collect();
        let rest = match (self.rest, other.rest) {
            (Rest::Told, rest) | (rest, Rest::Told) => rest,
            (Rest::Each(a), Rest::Each(b)) => Rest::Each(Box::new(a.or(*b))),
            (Rest::Free, _) | (_, Rest::Free) => Rest::Free,
        };
        Self { fields, rest }
    }
}

/// A comparison under way.
struct Check {
    strict: bool,
    out: Vec<Difference>,
}

impl Check {
    fn tell(&mut self, at: &str, change: Change, fault: bool) {
        if self.out.len() < MAX_DIFFERENCES {
            self.out.push(Difference { at: at.to_owned(), change, fault });
        }
    }

    fn value(&mut self, rule: &Schema, is: &Shape, at: &mut String) {
        if rule.anything || is.unseen {
            return;
        }
        // A type that does not fit is one difference, whatever lies below it.
        let kinds = [
            (is.null > 0, rule.null, "null"),
            (is.boolean > 0, rule.boolean, "boolean"),
            (is.integer > 0, rule.integer || rule.number, "integer"),
            (is.number > 0, rule.number, "number"),
            (is.string.is_some(), rule.string.is_some(), "string"),
            (is.array.is_some(), rule.array.is_some(), "array"),
            (is.object.is_some(), rule.object.is_some(), "object"),
        ];
        for (there, fits, kind) in kinds {
            if there && !fits {
                // Servers write 1.0 as 1: where whole numbers were only what came so far, a fraction is news.
                let widened = kind == "number" && rule.integer && !self.strict;
                self.tell(at, Change::Type { was: rule.words(), is: kind.to_owned() }, !widened);
            }
        }
        if let (Some(rule), Some(is)) = (&rule.string, &is.string) {
            self.text(rule, is, at);
        }
        if let (Some(rule), Some(is)) = (&rule.array, &is.array) {
            within(at, "*", |at| self.value(rule, &is.items, at));
        }
        if let (Some(rule), Some(is)) = (&rule.object, &is.object) {
            self.object(rule, is, at);
        }
    }

    fn text(&mut self, rule: &TextRule, is: &Text, at: &str) {
        if let Some(was) = rule.format
            && is.format != Some(was)
        {
            self.tell(at, Change::Format { was: was.name(), is: is.format.map(Format::name) }, true);
        }
        if let Some(words) = &rule.words {
            let strange = match &is.words {
                Some(now) => now.keys().find(|word| !words.contains(*word)).cloned(),
                None => Some("…".to_owned()),
            };
            if let Some(word) = strange {
                let was: Vec<String> = words.iter().map(|w| shown(w)).collect();
                self.tell(at, Change::Word { is: shown(&word), was: was.join(", ") }, self.strict);
            }
        }
    }

    fn object(&mut self, rule: &ObjectRule, is: &Object, at: &mut String) {
        if let Rest::Each(each) = &rule.rest {
            let strange = is.fields.iter().filter(|(name, _)| !rule.fields.contains_key(*name));
            for shape in strange.map(|(_, shape)| shape).chain(is.map.as_deref()) {
                within(at, "{}", |at| self.value(each, shape, at));
            }
            // The same in every entry is one difference.
            let mut told = BTreeSet::new();
            self.out.retain(|d| told.insert((d.at.clone(), d.change.clone())));
        }
        if is.map.is_some() {
            // More names than were kept: which ones are missing cannot be told.
            return;
        }
        for (name, field) in &rule.fields {
            let there = is.fields.get(name).map_or(0, |shape| shape.seen);
            if field.required && there < is.seen {
                let of = (is.seen - there, is.seen);
                let was = field.schema.words();
                within(at, &segment(name), |at| self.tell(at, Change::Missing { of, was }, true));
            }
            if let Some(shape) = is.fields.get(name) {
                within(at, &segment(name), |at| self.value(&field.schema, shape, at));
            }
        }
        if rule.rest == Rest::Told {
            for (name, shape) in is.fields.iter().filter(|(name, _)| !rule.fields.contains_key(*name)) {
                let is = shape.schema().words();
                within(at, &segment(name), |at| self.tell(at, Change::New { is }, false));
            }
        }
    }
}

/// Calls `then` with the pointer one step further.
fn within(at: &mut String, step: &str, then: impl FnOnce(&mut String)) {
    let length = at.len();
    at.push('/');
    at.push_str(step);
    then(at);
    at.truncate(length);
}

/// A field's name as one step of a JSON pointer (RFC 6901), with nothing that a terminal obeys.
fn segment(name: &str) -> String {
    shown(&name.replace('~', "~0").replace('/', "~1"))
}

fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(64).collect();
    let more = if chars.next().is_some() { "…" } else { "" };
    format!("{}{more}", head.escape_debug())
}
