//! Paths of a recipe: relative to the file that says them, on the command line to where the command runs. They are made absolute,
//! so that `resolved.toml` means the same wherever it is read; messages and reports show them as seen from the current folder.

use crate::Origin;
use crate::node::{Node, NodeKind};
use crate::schema::Findings;
use crate::sections::Recipe;
use serde_json::Value;
use std::path::{Component, Path, PathBuf};
use taper_diagnostics::{Diagnose, Problem};
use taper_hub::ModelSource;

/// Keys whose values are paths, besides those that name models, `serve.adapters` and those of lists of sections.
const PATH_KEYS: [&str; 5] = ["data.train", "data.valid", "data.test", "model.chat_template", "cost.prices"];
/// Keys whose values are paths in each section of a list.
const PATH_KEYS_OF_LISTS: [(&str, &str); 4] =
    [("eval", "data"), ("eval", "few_shot_data"), ("eval", "schema"), ("candidate", "adapter")];

/// Make every path absolute. A base that is neither a folder nor a hub id is a problem.
pub(crate) fn make_absolute(root: &mut Node, found: &mut Findings) {
    let mut keys: Vec<String> = PATH_KEYS.iter().map(|k| (*k).to_owned()).collect();
    for (list, key) in PATH_KEYS_OF_LISTS {
        if let Some(NodeKind::Array(sections)) = root.child(list).map(|n| &n.kind) {
            keys.extend((0..sections.len()).map(|i| format!("{list}.{i}.{key}")));
        }
    }
    for key in keys {
        let Some(node) = at_mut(root, &key) else { continue };
        match &mut node.kind {
            NodeKind::Array(items) => items.iter_mut().for_each(file),
            _ => file(node),
        }
    }
    if let Some(NodeKind::Table(adapters)) = at_mut(root, "serve.adapters").map(|node| &mut node.kind) {
        adapters.iter_mut().for_each(|(_, folder)| file(folder));
    }
    let mut models = vec!["model.base".to_owned(), "smoke.base".to_owned()];
    if let Some(NodeKind::Array(candidates)) = root.child("candidate").map(|n| &n.kind) {
        models.extend((0..candidates.len()).map(|i| format!("candidate.{i}.model")));
    }
    for key in models {
        if let Some(node) = at_mut(root, &key) {
            model(&key, node, found);
        }
    }
}

fn at_mut<'a>(root: &'a mut Node, key: &str) -> Option<&'a mut Node> {
    key.split('.').try_fold(root, |node, segment| node.child_mut(segment))
}

/// What a path beside this value is relative to.
fn folder_of(origin: &Origin) -> PathBuf {
    match origin {
        Origin::File { path, .. } => path.parent().unwrap_or(Path::new("")).to_owned(),
        Origin::CommandLine | Origin::Default => PathBuf::new(),
    }
}

fn file(node: &mut Node) {
    let folder = folder_of(&node.origin);
    let NodeKind::Scalar(Value::String(text)) = &mut node.kind else { return };
    // An empty path stays one, for its section to complain of.
    if !text.is_empty() {
        *text = absolute(&folder.join(&*text)).to_string_lossy().into_owned();
    }
}

fn model(key: &str, node: &mut Node, found: &mut Findings) {
    let at = node.origin.location(key);
    let folder = folder_of(&node.origin);
    let NodeKind::Scalar(Value::String(text)) = &mut node.kind else { return };
    if text.trim().is_empty() {
        return;
    }
    match ModelSource::parse_in(&folder, text) {
        Ok(ModelSource::Folder(path) | ModelSource::Gguf(path)) => {
            *text = absolute(&path).to_string_lossy().into_owned();
        }
        Ok(ModelSource::Hub { .. } | ModelSource::HubGguf { .. }) => {}
        Err(error) => {
            let problem = Problem { hint: error.hint(), ..Problem::error("model", error.to_string()) };
            found.push(key, problem.at(at));
        }
    }
}

/// Paths below the current folder without it, as a person there would write them.
pub(crate) fn see_from_here(recipe: &mut Recipe) {
    let Ok(here) = std::env::current_dir() else { return };
    let seen =
        |path: &Path| path.strip_prefix(&here).ok().filter(|p| !p.as_os_str().is_empty()).map(Path::to_owned);
    let data = &mut recipe.data;
    for list in [&mut data.train, &mut data.valid, &mut data.test]
        .into_iter()
        .chain(recipe.eval.iter_mut().flat_map(|eval| [&mut eval.data, &mut eval.few_shot_data]))
    {
        *list = list.paths().iter().map(|path| seen(path).unwrap_or_else(|| path.clone())).collect();
    }
    let of_cost = recipe.cost.iter_mut().filter_map(|cost| cost.prices.as_mut());
    let of_evals = recipe.eval.iter_mut().filter_map(|eval| eval.schema.as_mut());
    let of_candidates = recipe.candidate.iter_mut().filter_map(|candidate| candidate.adapter.as_mut());
    for path in recipe
        .model
        .chat_template
        .iter_mut()
        .chain(recipe.serve.adapters.values_mut())
        .chain(of_evals)
        .chain(of_candidates)
        .chain(of_cost)
    {
        *path = seen(path).unwrap_or_else(|| path.clone());
    }
    // What is no folder would be taken for a hub id.
    let of_candidates = recipe.candidate.iter_mut().filter_map(|candidate| candidate.model.as_mut());
    for model in std::iter::once(&mut recipe.model.base).chain(&mut recipe.smoke.base).chain(of_candidates) {
        if let Some(path) = seen(Path::new(model)).filter(|path| path.is_dir()) {
            *model = path.to_string_lossy().into_owned();
        }
    }
}

/// The path from the root of the file system, without `.` and `..` unless a link makes them mean something else.
fn absolute(path: &Path) -> PathBuf {
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let clean = without_dots(&full);
    match (full.canonicalize(), clean.canonicalize()) {
        (Ok(one), Ok(other)) if one == other => clean,
        (Err(_), Err(_)) => clean,
        _ => full,
    }
}

fn without_dots(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_taken_out() {
        assert_eq!(without_dots(Path::new("/a/b/../c/./d")), Path::new("/a/c/d"));
        assert_eq!(absolute(Path::new("/no/such/../file")), Path::new("/no/file"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("no-such-file")), here.join("no-such-file"));
    }

    #[test]
    #[cfg(unix)]
    fn dots_behind_a_link_stay() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs_err::create_dir_all(root.join("a/b")).unwrap();
        fs_err::write(root.join("a/file"), "").unwrap();
        fs_err::os::unix::fs::symlink(root.join("a/b"), root.join("link")).unwrap();
        let through = root.join("link/../file");
        assert_eq!(absolute(&through), through);
        fs_err::write(root.join("file"), "").unwrap();
        assert_eq!(absolute(&through), through, "another file of that name lies where the dots seem to lead");
        assert_eq!(absolute(&root.join("a/b/../file")), root.join("a/file"));
    }
}
