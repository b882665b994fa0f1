//! Every seed of `fuzz/corpus` through the readers that are fuzzed, so that what a fuzzer found stays fixed without one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use taper_testkit::hostile::TARGETS;

/// Far above what any seed takes, so that only a hang is over it.
const LONGEST: Duration = Duration::from_secs(20);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(folder).expect("a folder of seeds");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a seed").path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_seed_is_read_or_refused_within_its_time() {
    for target in TARGETS {
        let (mut seeds, mut accepted) = (0, 0);
        for path in files(&corpus().join(target.name)) {
            let bytes = fs_err::read(&path).unwrap();
            let start = Instant::now();
            let outcome = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(start.elapsed() < LONGEST, "`{}` takes {:?}", path.display(), start.elapsed());
            accepted +=
                usize::from(outcome.unwrap_or_else(|_| panic!("`{}` breaks a promise", path.display())));
            seeds += 1;
        }
        // A reader that refuses everything, or takes everything, is not tested by its seeds.
        assert!(seeds >= 12, "{} has {seeds} seeds", target.name);
        assert!(accepted > 3 && accepted < seeds, "{}: {accepted} of {seeds} are accepted", target.name);
    }
}

#[test]
fn every_target_has_seeds_and_every_folder_of_seeds_a_target() {
    let named: Vec<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let found: Vec<String> = files(&corpus())
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, named);
    for target in TARGETS {
        let program = corpus().join(format!("../fuzz_targets/{}.rs", target.name));
        assert!(fs_err::read_to_string(program).unwrap().contains(&format!("hostile::{}", target.name)));
    }
}
