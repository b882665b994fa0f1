//! Values of a row that no format reads and a caller asks for: what an evaluation slices or clusters by.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The values of a row that `names` name; a name that the row does not have is left out.
pub(crate) fn values(columns: &Map<String, Value>, names: &[String]) -> BTreeMap<String, Value> {
    names.iter().filter_map(|name| Some((name.clone(), find(columns, name)?.clone()))).collect()
}

/// Whether a column is one of `names`, or holds the object in which one of them lies.
pub(crate) fn is_asked(names: &[String], column: &str) -> bool {
    let in_it = |name: &String| {
        name.strip_prefix(column).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    names.iter().any(in_it)
}

/// The value under the very name, else under its first part and there under the rest.
fn find<'a>(columns: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    columns.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        find(columns.get(first)?.as_object()?, rest)
    })
}
