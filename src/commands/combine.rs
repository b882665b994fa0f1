//! `taper adapter combine`: one adapter of several.

use crate::adapters::{combined, named_with_weight};
use crate::cli::AdapterCombineArgs;
use crate::fault::{OrFault, user_error};
use crate::output::say;
use taper_diagnostics::ExitCode;
use taper_peft::{AdapterConfig, Combination, MajoritySign};

pub(crate) fn combine(args: &AdapterCombineArgs) -> anyhow::Result<ExitCode> {
    if args.out.exists() {
        return Err(user_error(
            format!("`{}` is there already", args.out.display()),
            "name a folder that is not there yet",
        ));
    }
    let how = Combination {
        combination_type: serde_json::from_value(args.combination_type.clone().into())?,
        density: args.density,
        svd_rank: args.svd_rank,
        majority_sign_method: if args.majority_by_frequency {
            MajoritySign::Frequency
        } else {
            MajoritySign::Total
        },
        seed: args.seed,
    };
    let (config, weights) = combined(&args.adapters, None, &how)?;
    fs_err::create_dir_all(&args.out)?;
    taper_peft::write_files(&args.out, &AdapterConfig { inference_mode: true, ..config.clone() }, &weights)
        .or_fault()?;
    let names: Vec<String> = args.adapters.iter().map(named_with_weight).collect();
    say(&format!(
        "wrote {}: {} ({}), r = {}",
        args.out.display(),
        names.join(" + "),
        args.combination_type,
        config.r
    ));
    Ok(ExitCode::Passed)
}
