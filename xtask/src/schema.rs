//! `cargo xtask schema`: the JSON Schemas of recipes, for editors, and of results, for scripts.

use anyhow::Result;
use serde_json::Value;
use std::path::Path;

/// Write both below `root`.
pub(crate) fn write(root: &Path) -> Result<()> {
    write_one(&root.join("recipes/recipe.schema.json"), &taper_recipe::json_schema())?;
    write_one(&root.join("docs/results.schema.json"), &taper_eval::report::results_schema())
}

fn write_one(path: &Path, schema: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(schema)?;
    text.push('\n');
    Ok(fs_err::write(path, text)?)
}
