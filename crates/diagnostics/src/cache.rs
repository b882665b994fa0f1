//! Where what can be made again is kept between runs.

use std::ffi::OsString;
use std::path::PathBuf;

/// `part` in the folder that `TAPER_CACHE_DIR` names, else in `taper` in the user's cache folder (`XDG_CACHE_HOME`, else `.cache` at
/// home). `None` for a user who has no home.
pub fn cache_folder(part: &str) -> Option<PathBuf> {
    let home = std::env::home_dir();
    from_variables(part, |name| std::env::var_os(name).filter(|value| !value.is_empty()), home)
}

fn from_variables(
    part: &str,
    variable: impl Fn(&str) -> Option<OsString>,
    home: Option<PathBuf>,
) -> Option<PathBuf> {
    // A relative folder is to be ignored, says the standard of `XDG_CACHE_HOME`.
    let absolute = |folder: &PathBuf| folder.is_absolute();
    let named = variable("TAPER_CACHE_DIR").map(PathBuf::from);
    let of_user = || variable("XDG_CACHE_HOME").map(PathBuf::from).filter(absolute);
    let at_home = || home.filter(absolute).map(|home| home.join(".cache"));
    let folder = named.or_else(|| of_user().or_else(at_home).map(|folder| folder.join("taper")))?;
    Some(folder.join(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_one_that_is_named_or_the_users() {
        let folder = |variables: &[(&str, &str)], home: Option<&str>| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            };
            from_variables("tokens", variable, home.map(PathBuf::from))
        };
        let is = |path: &str| Some(PathBuf::from(path));
        assert_eq!(folder(&[("TAPER_CACHE_DIR", "c"), ("XDG_CACHE_HOME", "/x")], Some("/h")), is("c/tokens"));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "/x")], Some("/h")), is("/x/taper/tokens"));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "x")], Some("/h")), is("/h/.cache/taper/tokens"));
        assert_eq!(folder(&[], Some("h")), None);
        assert_eq!(folder(&[], None), None);
    }
}
