//! `cargo xtask schema`: the JSON Schema of recipes, for editors.

use anyhow::Result;
use std::path::Path;

/// Write it to `path`.
pub(crate) fn write(path: &Path) -> Result<()> {
    let mut text = serde_json::to_string_pretty(&taper_recipe::json_schema())?;
    text.push('\n');
    fs_err::write(path, text)?;
    Ok(())
}
