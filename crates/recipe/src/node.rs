//! A recipe's values, each with its origin.

use crate::Origin;
use serde_json::{Map, Value};

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub origin: Origin,
    pub kind: NodeKind,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NodeKind {
    Scalar(Value),
    /// What TOML can write and no key of a recipe takes, and why.
    Refused(&'static str),
    Array(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Node {
    /// The child of a table, or the element of an array, named by a segment of a dotted key.
    pub(crate) fn child(&self, segment: &str) -> Option<&Node> {
        match &self.kind {
            NodeKind::Table(entries) => entries.iter().find(|(k, _)| k == segment).map(|(_, n)| n),
            NodeKind::Array(items) => segment.parse::<usize>().ok().and_then(|i| items.get(i)),
            NodeKind::Scalar(_) | NodeKind::Refused(_) => None,
        }
    }

    /// [`Self::child`], to change it.
    pub(crate) fn child_mut(&mut self, segment: &str) -> Option<&mut Node> {
        match &mut self.kind {
            NodeKind::Table(entries) => entries.iter_mut().find(|(k, _)| k == segment).map(|(_, n)| n),
            NodeKind::Array(items) => segment.parse::<usize>().ok().and_then(|i| items.get_mut(i)),
            NodeKind::Scalar(_) | NodeKind::Refused(_) => None,
        }
    }

    /// The value at a dotted key.
    pub(crate) fn at(&self, key: &str) -> Option<&Node> {
        self.at_path(key.split('.'))
    }

    /// The value at a path of segments, which may have dots in them.
    pub(crate) fn at_path<'k>(&self, path: impl IntoIterator<Item = &'k str>) -> Option<&Node> {
        path.into_iter().try_fold(self, |node, segment| node.child(segment))
    }

    /// The origin of a dotted key: its own, or that of the nearest table around it.
    pub(crate) fn origin_of(&self, key: &str) -> Origin {
        let mut node = self;
        for segment in key.split('.') {
            match node.child(segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.origin.clone()
    }

    /// Put `value` at a dotted key, making tables on the way.
    ///
    /// # Errors
    /// The segment that stands in something that is neither a table nor an array with that element.
    pub(crate) fn set(&mut self, key: &str, value: Node) -> Result<(), String> {
        let mut node = self;
        let segments: Vec<&str> = key.split('.').collect();
        let Some((last, way)) = segments.split_last() else { return Err(key.to_owned()) };
        for segment in way {
            if node.child(segment).is_none() {
                let NodeKind::Table(entries) = &mut node.kind else { return Err((*segment).to_owned()) };
                let table = Node { origin: value.origin.clone(), kind: NodeKind::Table(Vec::new()) };
                entries.push(((*segment).to_owned(), table));
            }
            let Some(child) = node.child_mut(segment) else { return Err((*segment).to_owned()) };
            node = child;
        }
        if let Some(child) = node.child_mut(last) {
            *child = value;
            return Ok(());
        }
        match &mut node.kind {
            NodeKind::Table(entries) => {
                entries.push(((*last).to_owned(), value));
                Ok(())
            }
            _ => Err((*last).to_owned()),
        }
    }

    /// This recipe over the one it extends: tables are merged key by key, everything else is replaced.
    pub(crate) fn over(self, base: Node) -> Node {
        match (self.kind, base.kind) {
            (NodeKind::Table(own), NodeKind::Table(mut merged)) => {
                for (key, node) in own {
                    match merged.iter().position(|(k, _)| *k == key) {
                        Some(i) => {
                            let (_, below) = merged.remove(i);
                            merged.insert(i, (key, node.over(below)));
                        }
                        None => merged.push((key, node)),
                    }
                }
                Node { origin: self.origin, kind: NodeKind::Table(merged) }
            }
            (kind, _) => Node { origin: self.origin, kind },
        }
    }

    /// The plain value.
    pub(crate) fn to_json(&self) -> Value {
        match &self.kind {
            NodeKind::Scalar(value) => value.clone(),
            NodeKind::Refused(_) => Value::Null,
            NodeKind::Array(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            NodeKind::Table(entries) => {
                Value::Object(entries.iter().map(|(k, n)| (k.clone(), n.to_json())).collect::<Map<_, _>>())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(value: i64) -> Node {
        Node { origin: Origin::CommandLine, kind: NodeKind::Scalar(value.into()) }
    }

    fn table(entries: &[(&str, Node)]) -> Node {
        let entries = entries.iter().map(|(k, n)| ((*k).to_owned(), n.clone())).collect();
        Node { origin: Origin::Default, kind: NodeKind::Table(entries) }
    }

    #[test]
    fn a_recipe_overrides_key_by_key_what_it_extends() {
        let base = table(&[("train", table(&[("seed", scalar(1)), ("steps", scalar(2))]))]);
        let own = table(&[("train", table(&[("seed", scalar(9))])), ("new", scalar(3))]);
        assert_eq!(own.over(base).to_json(), serde_json::json!({"train": {"seed": 9, "steps": 2}, "new": 3}));
    }

    #[test]
    fn set_makes_tables_and_refuses_to_stand_inside_a_number() {
        let mut root = table(&[("a", scalar(1))]);
        root.set("b.c", scalar(2)).unwrap();
        assert_eq!(root.to_json(), serde_json::json!({"a": 1, "b": {"c": 2}}));
        assert_eq!(root.set("a.b", scalar(2)), Err("b".to_owned()));
    }
}
