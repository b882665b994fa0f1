//! A crate imports only from lower layers: the table of ARCHITECTURE.md held against `cargo metadata`.

use std::collections::BTreeMap;
use std::path::Path;

/// Rows `| layer | `name` | ... |` of the table; development crates have no layer and may import anything.
fn layers() -> BTreeMap<String, u32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs_err::read_to_string(path).expect("ARCHITECTURE.md");
    let mut layers = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, layer, name, ..] = cells.as_slice() else { continue };
        let Ok(layer) = layer.parse::<u32>() else { continue };
        let name = name.split('`').nth(1).expect("a name in backticks");
        let package = if name == "taper" { name.to_owned() } else { format!("taper-{name}") };
        layers.insert(package, layer);
    }
    layers
}

#[test]
fn crates_import_from_lower_layers_only() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let metadata = cargo_metadata::MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let layers = layers();
    assert!(layers.len() >= 12, "the table of ARCHITECTURE.md was not found");
    let development = ["taper-testkit", "xtask"];
    for package in &metadata.packages {
        let name = package.name.as_str();
        if development.contains(&name) {
            continue;
        }
        let layer = layers.get(name).unwrap_or_else(|| panic!("`{name}` is not in ARCHITECTURE.md"));
        for dependency in &package.dependencies {
            let ours = dependency.name.starts_with("taper-") || dependency.name == "xtask";
            if !ours || dependency.kind != cargo_metadata::DependencyKind::Normal {
                continue;
            }
            let below = layers.get(&dependency.name).copied();
            assert!(
                below.is_some_and(|below| below < *layer),
                "`{name}` (layer {layer}) imports `{}` (layer {below:?})",
                dependency.name
            );
        }
    }
    let listed = layers.len() + development.len();
    assert_eq!(listed, metadata.packages.len(), "ARCHITECTURE.md lists crates that do not exist");
}

#[test]
fn unsafe_code_is_in_kernels_alone() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates");
    let mut inspected = 0;
    for entry in fs_err::read_dir(crates).unwrap() {
        let folder = entry.unwrap().path();
        if folder.file_name().is_some_and(|name| name == "kernels") {
            continue;
        }
        let manifest = fs_err::read_to_string(folder.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{} has lints of its own", folder.display());
        inspected += 1;
    }
    assert!(inspected >= 12);
    let root = fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(root.contains("unsafe_code = \"forbid\""));
}
