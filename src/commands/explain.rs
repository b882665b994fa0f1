//! `taper explain`: an example as the model will see it.

use crate::cli::ExplainArgs;
use crate::fault::OrFault;
use crate::output::{print, say};
use crate::workspace::{Base, resolve};
use serde_json::json;
use taper_diagnostics::ExitCode;

pub(crate) fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let run = resolve(&args.recipe)?;
    let base = Base::of_recipe(&run.recipe.model, &args.recipe.common)?;
    let section = &run.recipe.data;
    let train = taper_data::load(section.train.paths(), section).or_fault()?;
    let encoder = base.encoder(section);
    let explanation =
        taper_data::explain(&train.examples, args.sample, &encoder, section.max_length).or_fault()?;
    if args.recipe.common.json {
        let tokens = serde_json::to_value(&explanation.tokens)?;
        let place = explanation.place.to_string();
        print(&json!({ "place": place, "text": explanation.text, "tokens": tokens }).to_string())?;
    } else {
        say(&format!("{}\n\n{}\n", explanation.place, explanation.text));
        print(explanation.table().trim_end())?;
    }
    Ok(ExitCode::Passed)
}
