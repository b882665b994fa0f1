//! The recipes that ship inside the binary.

/// A recipe that ships.
#[derive(Debug, Clone, Copy)]
pub struct BuiltinRecipe {
    /// Its path below `recipes/`, without `.toml`.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
}

impl BuiltinRecipe {
    /// The first line of the header: what it is.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches(['#', ' '])
    }
}

macro_rules! builtin {
    ($($name:literal),+ $(,)?) => {
        &[$(BuiltinRecipe { name: $name, text: include_str!(concat!("../../../recipes/", $name, ".toml")) }),+]
    };
}

/// All of them, in the order of their names.
pub fn builtin_recipes() -> &'static [BuiltinRecipe] {
    builtin![
        "llama3.2/1b_lora",
        "pretrain-tiny",
        "quickstart",
        "qwen2.5/0.5b_lora",
        "qwen3/0.6b_lora",
        "qwen3/0.6b_qlora",
        "smollm2/135m_lora",
        "smollm2/360m_lora",
        "tickets",
    ]
}

/// The recipe of this name.
pub fn find_builtin(name: &str) -> Option<&'static BuiltinRecipe> {
    let name = name.trim_end_matches(".toml");
    builtin_recipes().iter().find(|r| r.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn files_below(folder: &Path, found: &mut Vec<String>, root: &Path) {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files_below(&path, found, root);
            } else if path.extension().is_some_and(|e| e == "toml") {
                let name = path.strip_prefix(root).unwrap().with_extension("");
                found.push(name.to_string_lossy().replace('\\', "/"));
            }
        }
    }

    #[test]
    fn every_recipe_of_the_repository_ships_and_says_what_it_is() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        let mut found = Vec::new();
        files_below(&root, &mut found, &root);
        found.sort();
        let names: Vec<&str> = builtin_recipes().iter().map(|r| r.name).collect();
        assert_eq!(found, names);
        for recipe in builtin_recipes() {
            assert!(recipe.text.starts_with("# "), "`{}` has no header", recipe.name);
            assert!(recipe.summary().len() > 20, "`{}` says too little of itself", recipe.name);
        }
    }
}
