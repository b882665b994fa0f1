//! Adapters that clients load and unload: off unless the server was started with a folder to take them from.
//!
//! A client names a folder below that root, never a path, and where the name leads is looked up before and after it is read.

use crate::app::App;
use crate::body;
use crate::catalogue::is_adapter_name;
use crate::error::ApiError;
use crate::fields::Fields;
use axum::body::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files of an adapter's folder that are looked at; more are no adapter.
const MOST_FILES: usize = 256;

/// vLLM's `/v1/load_lora_adapter`.
pub(crate) async fn load(app: Arc<App>, bytes: Bytes) -> Result<String, ApiError> {
    let root = allowed(&app)?;
    app.blocking(move |app| {
        let object = body::object(&bytes)?;
        let mut fields = Fields::new(&object);
        let name = required(&mut fields, "lora_name");
        let folder_name = required(&mut fields, "lora_path");
        let replace = fields.boolean("load_inplace").unwrap_or(false);
        fields.finish()?;
        let folder = below(&root, &folder_name)?;
        let info = app.add_adapter(&name, &folder, replace)?;
        // What lies there may have been changed meanwhile.
        if below(&root, &folder_name).ok().as_ref() != Some(&folder) {
            app.remove_adapter(&name)?;
            return Err(not_there(&folder_name));
        }
        tracing::info!(adapter = name, sha256 = info.sha256, "adapter loaded");
        Ok(format!("Success: LoRA adapter '{name}' added successfully."))
    })
    .await
}

/// vLLM's `/v1/unload_lora_adapter`.
pub(crate) async fn unload(app: Arc<App>, bytes: Bytes) -> Result<String, ApiError> {
    allowed(&app)?;
    app.blocking(move |app| {
        let object = body::object(&bytes)?;
        let mut fields = Fields::new(&object);
        let name = required(&mut fields, "lora_name");
        fields.finish()?;
        app.remove_adapter(&name)?;
        tracing::info!(adapter = name, "adapter unloaded");
        Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
    })
    .await
}

/// The root, where clients may load.
fn allowed(app: &App) -> Result<PathBuf, ApiError> {
    let root = app.options.adapter_root.as_ref().filter(|_| app.options.allow_adapter_loading);
    root.cloned().ok_or_else(|| {
        ApiError::forbidden(
            "adapter_loading_disabled",
            "adapters are not loaded over the network, unless the server is started with \
             `--allow-adapter-loading --adapter-root DIR`",
        )
    })
}

/// A name, of an adapter or of a folder.
fn required(fields: &mut Fields<'_>, key: &str) -> String {
    let name = fields.text(key, 1024).map(str::to_owned);
    match name {
        Some(name) if is_adapter_name(&name) => name,
        _ => {
            let message = format!(
                "`{key}` must be a name of letters, digits, `.`, `_` and `-`, beginning with a letter or digit, \
                 128 at most; paths are not taken"
            );
            fields.refuse(key, message);
            String::new()
        }
    }
}

/// The folder of that name in the root, links followed, if it and its files lie below the root.
fn below(root: &Path, name: &str) -> Result<PathBuf, ApiError> {
    let inside = |path: &Path| fs_err::canonicalize(path).ok().filter(|path| path.starts_with(root));
    let folder = inside(&root.join(name)).filter(|folder| folder != root && folder.is_dir());
    let folder = folder.ok_or_else(|| not_there(name))?;
    let entries = fs_err::read_dir(&folder).map_err(|_| not_there(name))?;
    for (count, entry) in entries.enumerate() {
        let path = entry.map_err(|_| not_there(name))?.path();
        if count >= MOST_FILES || inside(&path).is_none() {
            return Err(not_there(name));
        }
    }
    Ok(folder)
}

/// Whether there is something else of that name, or something outside the root, is not told.
fn not_there(name: &str) -> ApiError {
    ApiError::invalid(
        "lora_path",
        format!("there is no folder `{name}` with an adapter in the server's adapter root"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_below_the_root_are_found() {
        let here = tempfile::tempdir().unwrap();
        let here = fs_err::canonicalize(here.path()).unwrap();
        let root = here.join("root");
        for folder in ["root/good", "root/linked", "outside"] {
            fs_err::create_dir_all(here.join(folder)).unwrap();
        }
        fs_err::write(root.join("file"), "").unwrap();
        fs_err::write(here.join("outside/secret"), "").unwrap();
        assert_eq!(below(&root, "good").unwrap(), root.join("good"));
        for name in ["absent", "file"] {
            assert!(below(&root, name).is_err(), "{name}");
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::symlink;
            symlink(here.join("outside"), root.join("out")).unwrap();
            symlink(root.join("good"), root.join("in")).unwrap();
            symlink(here.join("outside/secret"), root.join("linked/adapter_config.json")).unwrap();
            symlink(&root, root.join("self")).unwrap();
            assert!(
                below(&root, "out").is_err()
                    && below(&root, "linked").is_err()
                    && below(&root, "self").is_err()
            );
            assert_eq!(below(&root, "in").unwrap(), root.join("good"));
        }
    }
}
