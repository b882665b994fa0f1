//! Recipes from the file to the run: faults with their places, values with their origins, the files that ship.

#[cfg(test)]
mod builtin;
#[cfg(test)]
mod conflicts;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod origins;
#[cfg(test)]
mod paths;
#[cfg(test)]
mod resolved;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod support;
