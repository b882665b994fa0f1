//! Parse, check and resolve one recipe file into a run.
//!
//! A recipe is TOML. Each section is a type of the crate that reads it; this crate knows which sections there are, where each
//! value came from (a file and its line, `--set`, or a default), and tells all that is wrong at once.

mod builtin;
mod error;
mod node;
mod origin;
mod paths;
mod resolve;
mod resolved_toml;
mod schema;
mod sections;
mod smoke;
mod source;
mod together;

pub use builtin::{BuiltinRecipe, builtin_recipes, find_builtin};
pub use error::RecipeError;
pub use origin::Origin;
pub use resolve::{ResolvedRun, resolve};
pub use resolved_toml::resolved_toml;
pub use schema::json_schema;
pub use sections::Recipe;
pub use smoke::SmokeSection;
